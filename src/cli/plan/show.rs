//! How a plan is shown.

use super::{Forecast, Report};
use crate::cli::fallbacks;
use crate::cli::output::{self, bytes, time};
use crate::pipeline::forecast::Part;
use crate::pipeline::forecast::memory_advice::MemoryAdvice;
use crate::pipeline::forecast::sizes::{Size, source_type};
use crate::pipeline::plan::{Planned, size_label};
use crate::source::value::{Value, get};
use serde_json::{Map, json};
use std::time::Duration;

/// Types that are shown on either side of the one that was asked for.
const NEAR: usize = 5;

/// Parts of the memory that are shown are at least that part of it.
const SMALL: u64 = 25;

impl Report<'_> {
    fn fits(&self, size: &Size) -> Option<bool> {
        Some(self.needs?.fit(size.on_gpu, self.vram?))
    }

    fn architecture(&self) -> &str {
        get(&self.plan.metadata, "general.architecture").and_then(Value::as_str).unwrap_or("unknown architecture")
    }

    fn fallbacks(&self) -> impl Iterator<Item = &Planned> {
        self.plan.tensors.iter().filter(|tensor| tensor.instead_of.is_some())
    }

    /// Tables and sentences.
    pub fn text(&self) {
        let (weights, blocks) = (size_label(self.plan.elements()), self.plan.blocks().len());
        let source = source_type(self.plan);
        output::line(format!("{}, {weights} weights in {source}, {blocks} blocks", self.architecture()));
        self.table();
        fallbacks::planned(self.plan.tensors.iter()).iter().for_each(output::line);
        self.plan.notes.iter().for_each(output::line);
        let windows = self.windows.map_or(String::new(), |(n, length)| format!(", {n} windows of {length} tokens"));
        let chosen = self.sizes[self.chosen].mix.name;
        let threads = rayon::current_num_threads();
        output::line(format!("\nquantizing to {chosen} on this machine ({threads} threads{windows}):"));
        for forecast in &self.forecasts {
            output::line(forecast.line());
        }
        self.memory();
        if !self.advice.is_empty() {
            output::line("");
        }
        self.advice.iter().for_each(|advice| output::line(&advice.text));
    }

    fn table(&self) {
        let gpu = self.needs.is_some();
        let fits = self.vram.map_or(String::new(), |vram| format!("   fits {}", bytes(vram)));
        let on_gpu = if gpu { "   on the GPU" } else { "" };
        output::line(format!("\n{:10} {:>11} {:>10}{on_gpu}{fits}", "type", "bits/weight", "size"));
        let near = |i: usize| self.args.all || i.abs_diff(self.chosen) <= NEAR || self.largest == Some(i);
        for (i, size) in self.sizes.iter().enumerate().filter(|(i, _)| near(*i)) {
            let on_gpu = self.needs.map_or(String::new(), |needs| format!("{:>13}", bytes(needs.with(size.on_gpu))));
            let fits = match (self.fits(size), self.largest == Some(i)) {
                (None, _) => "",
                (Some(false), _) => "   no",
                (Some(true), false) => "   yes",
                (Some(true), true) => "   yes, the largest that does",
            };
            let mark = if i == self.chosen { "  <- asked for" } else { "" };
            let (name, bits) = (size.mix.name, size.bits_per_weight);
            output::line(format!("{name:10} {bits:11.2} {:>10}{on_gpu}{fits}{mark}", bytes(size.bytes)));
        }
        let others = (0..self.sizes.len()).filter(|i| !near(*i)).count();
        if others > 0 {
            output::line(format!("and {others} other types: --all"));
        }
        match self.needs {
            Some(needs) => output::line(format!(
                "on the GPU: the weights that llama.cpp keeps there, keys and values of {} tokens in {} ({}), and {} for \
                 computing",
                needs.context,
                self.args.run.fit.kv().name(),
                bytes(needs.cache),
                bytes(needs.reserve)
            )),
            None => output::line("what the context of this model takes is not known, so neither is what fits a GPU"),
        }
        self.contexts();
    }

    /// What fits beside contexts of several lengths.
    fn contexts(&self) {
        if self.contexts.is_empty() {
            return;
        }
        output::line(format!("\n{:>9} {:>15}   the largest type that fits beside it", "context", "its memory"));
        for (needs, size) in &self.contexts {
            let kind = size.map_or("none", |i| self.sizes[i].mix.name);
            output::line(format!("{:>9} {:>15}   {kind}", needs.context, bytes(needs.cache)));
        }
    }

    fn memory(&self) {
        let peak = &self.forecasts[0].peak;
        let total = peak.bytes();
        output::line(format!("\nmost memory at once, as asked for, while {}:", peak.moment));
        let shown = |part: &&Part| self.args.all || part.bytes >= total / SMALL;
        for part in peak.parts.iter().filter(shown) {
            output::line(format!("  {:>10}  {}", bytes(part.bytes), part.name));
        }
        let rest: u64 = peak.parts.iter().filter(|part| !shown(part)).map(|part| part.bytes).sum();
        if rest > 0 {
            output::line(format!("  {:>10}  everything else: --all", bytes(rest)));
        }
        output::line(format!("  {:>10}  together; mapped files of the model come and go beside that", bytes(total)));
        let scratch = self.forecasts[0].scratch;
        if scratch > 0 {
            output::line(format!("on the disk beside the output, until it is done: {}", bytes(scratch)));
        }
        let Some(ram) = self.args.run.ram else { return };
        match &self.memory {
            None => output::line(format!("that fits --ram {}", bytes(ram))),
            Some(advice) => {
                output::line(format!("that does not fit --ram {}; {}", bytes(ram), self.instead(advice)));
            }
        }
    }

    fn instead(&self, advice: &MemoryAdvice) -> String {
        let mut ways = Vec::new();
        if let Some(samples) = advice.samples {
            ways.push(format!("--samples {samples}"));
        }
        if let Some(positions) = advice.positions {
            ways.push(format!("--seq-len {positions}"));
        }
        if ways.is_empty() && self.windows.is_some() && advice.rtn {
            ways.push("--method rtn".into());
        }
        match ways.is_empty() {
            true => "fewer --threads, or more memory, is all that is left".into(),
            false => format!("what does: {}", ways.join(", or ")),
        }
    }

    /// A line for each type, then a summary.
    pub fn json(&self) {
        for (i, size) in self.sizes.iter().enumerate() {
            let fields = json!({
                "name": size.mix.name,
                "bits_per_weight": size.bits_per_weight,
                "bytes": size.bytes,
                "gpu_bytes": self.needs.map(|needs| needs.with(size.on_gpu)),
                "fits_vram": self.fits(size),
                "largest_that_fits": self.largest == Some(i),
                "asked_for": i == self.chosen,
            });
            output::json("size", fields);
        }
        let (size, forecast) = (&self.sizes[self.chosen], &self.forecasts[0]);
        let fallbacks = self.fallbacks().map(|tensor| {
            json!({
                "name": tensor.spec.gguf,
                "to": tensor.kind.name(),
                "instead_of": tensor.instead_of.map(|kind| kind.name()),
                "bytes": tensor.fallback_cost(),
            })
        });
        let speed = &self.speed;
        let mut summary = json!({
            "architecture": self.architecture(),
            "elements": self.plan.elements(),
            "source_type": source_type(self.plan),
            "name": size.mix.name,
            "bytes": size.bytes,
            "bits_per_weight": size.bits_per_weight,
            "method": forecast.method,
            "samples": self.windows.map(|(n, _)| n),
            "seq_len": self.windows.map(|(_, length)| length),
            "threads": rayon::current_num_threads(),
            "seconds": forecast.times.total(),
            "peak_memory_bytes": forecast.peak.bytes(),
            "forecasts": self.forecasts.iter().map(Forecast::json).collect::<Vec<_>>(),
            "measured": {
                "linear_gflops": 2e-9 * speed.linear,
                "outer_gflops": 2e-9 * speed.outer,
                "attention_gflops": 2e-9 * speed.attention,
                "rounded_weights_per_second": speed.quick,
            },
            "context": self.needs.map(|needs| needs.context),
            "cache_bytes": self.needs.map(|needs| needs.cache),
            "reserve_bytes": self.needs.map(|needs| needs.reserve),
            "vram_bytes": self.vram,
            "fits_vram": self.fits(size),
            "largest_that_fits": self.largest.map(|i| self.sizes[i].mix.name),
        });
        let more = json!({
            "ram_bytes": self.args.run.ram,
            "fits_ram": self.args.run.ram.map(|_| self.memory.is_none()),
            "samples_that_fit": self.memory.map(|advice| advice.samples),
            "seq_len_that_fits": self.memory.map(|advice| advice.positions),
            "fallbacks": fallbacks.collect::<Vec<_>>(),
            "fallback_bytes": self.plan.tensors.iter().filter_map(Planned::fallback_cost).sum::<i64>(),
            "notes": self.plan.notes,
            "advice": self.advice.iter().map(|a| json!({ "kind": a.kind, "text": a.text })).collect::<Vec<_>>(),
        });
        if let (Some(all), serde_json::Value::Object(more)) = (summary.as_object_mut(), more) {
            all.extend(more);
        }
        output::json("summary", summary);
    }
}

impl Forecast {
    fn line(&self) -> String {
        let total = self.times.total();
        let parts = self.times.parts().into_iter().filter(|(_, seconds)| *seconds >= 0.02 * total);
        let parts: Vec<String> = parts.map(|(name, seconds)| format!("{name} {}", show(seconds))).collect();
        let memory = bytes(self.peak.bytes());
        let (name, method, parts) = (&self.name, self.method, parts.join(", "));
        format!("  {name:17} {method:8} about {:>9}, {memory:>9} of memory ({parts})", show(total))
    }

    fn json(&self) -> serde_json::Value {
        let seconds: Map<_, _> = self.times.parts().iter().map(|(k, t)| (k.to_string(), (*t).into())).collect();
        let parts: Map<_, _> = self.peak.parts.iter().map(|part| (part.name.into(), part.bytes.into())).collect();
        json!({
            "name": self.name,
            "method": self.method,
            "samples": self.samples,
            "scratch_bytes": self.scratch,
            "multiplications": self.multiplications[0],
            "linear_multiplications": self.multiplications[1],
            "seconds": self.times.total(),
            "seconds_in": seconds,
            "peak_memory_bytes": self.peak.bytes(),
            "peak_memory_moment": self.peak.moment,
            "peak_memory_in": parts,
        })
    }
}

/// Seconds as people read them; what no clock could show is for ever.
fn show(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or("for ever".into(), time)
}
