//! `--types`: a file of each type; `--publish`: these files judged, and put on the hub with their card and report.

use super::Args;
use crate::error::Result;
use std::path::PathBuf;

/// One run for each type. They have nothing in common but the model: each is what `--type` alone makes.
///
/// # Errors
/// As of each run. What would be in the way of the last step is said before the first.
pub fn run(args: &Args) -> Result<()> {
    let types = match args.types.as_slice() {
        [] => vec![args.kind.clone()],
        several => several.iter().cloned().map(Some).collect(),
    };
    let outputs = args.outputs()?;
    types.iter().try_for_each(|kind| outputs.mix(kind.as_deref(), args.group_size).map(|_| ()))?;
    #[cfg(feature = "hub")]
    let publishing = publishing::Publishing::new(args)?;
    let mut made: Vec<Vec<PathBuf>> = Vec::new();
    for kind in types {
        let one = Args {
            kind,
            types: Vec::new(),
            #[cfg(feature = "hub")]
            publish: None,
            ..args.clone()
        };
        made.push(super::one(&one)?);
    }
    #[cfg(feature = "hub")]
    publishing.filter(|_| !args.dry_run).map_or(Ok(()), |publishing| publishing.run(args, made))?;
    Ok(())
}

#[cfg(feature = "hub")]
mod publishing {
    use super::super::default_output;
    use super::*;
    use crate::cli::{dispatch, hub, parse, publish, shell};
    use crate::writer::atomic::check_destination;
    use std::path::Path;

    /// What comes behind the last run.
    pub struct Publishing {
        model: PathBuf,
        card: PathBuf,
        report: PathBuf,
        repository: String,
    }

    impl Publishing {
        /// Nothing if that is not asked for.
        ///
        /// # Errors
        /// It could not be done.
        pub fn new(args: &Args) -> Result<Option<Publishing>> {
            let Some(repository) = args.publish.clone() else { return Ok(None) };
            let model = args.model.clone().unwrap_or_default();
            let stem = hub::named(&model).map_or_else(|| stem(&model), |repository| repository.name().to_owned());
            let [card, report] = ["README.md", "report.html"].map(|end| PathBuf::from(format!("{stem}.{end}")));
            if !args.dry_run {
                publish::check(&repository, args.yes)?;
                [&card, &report].into_iter().try_for_each(|path| check_destination(path, &[], args.force))?;
            }
            Ok(Some(Publishing { model, card, report, repository }))
        }

        /// Judges the files, and publishes them.
        ///
        /// # Errors
        /// As of `llmq eval`, `llmq compare` and `llmq publish`.
        pub fn run(self, args: &Args, made: Vec<Vec<PathBuf>>) -> Result<()> {
            let shown = |path: &Path| path.display().to_string();
            let mut words = vec![if made.len() > 1 { "compare" } else { "eval" }.to_owned()];
            words.extend(made.iter().filter_map(|files| files.first()).map(|file| shown(file)));
            words.extend(["--reference".into(), shown(&self.model)]);
            // What others type to get the numbers of the card again.
            shell::stand_for(&words);
            words.extend(["--model-card".into(), shown(&self.card), "--report".into(), shown(&self.report)]);
            words.extend(args.force.then(|| "--force".into()));
            words.extend(args.json.then(|| "--json".into()));
            dispatch(&parse(&words)?)?;
            let files = made.into_iter().flatten().chain([self.card, self.report]).collect();
            publish::publish(files, self.repository, args.yes, args.json)
        }
    }

    /// What files of a model are called before their type.
    fn stem(model: &Path) -> String {
        let name = default_output(model, "").display().to_string();
        name.trim_end_matches("..gguf").to_owned()
    }
}
