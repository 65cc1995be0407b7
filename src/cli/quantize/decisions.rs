//! What a run decides because no option does, each with the option that would decide it.

use super::Args;
use crate::method::Method;
use crate::pipeline::Calibration;

/// One line; none where the options decide everything. `mix`: the type, unless a budget chooses types.
pub fn line(args: &Args, method: &dyn Method, mix: Option<&str>, calibration: Option<&Calibration>) -> Option<String> {
    let mut decided = Vec::new();
    if let (None, Some(mix)) = (&args.kind, mix) {
        decided.push(format!("type {mix} (--type)"));
    }
    let by_effort = args.how.decided(method);
    if !by_effort.is_empty() {
        decided.push(format!("{} (--effort {})", by_effort.join(", "), args.how.effort.name()));
    }
    if let Some(text) = calibration {
        if args.seq_len.is_none() {
            decided.push(format!("{} tokens a window (--seq-len)", text.positions));
        }
        if args.calib.is_empty() {
            decided.push("the text that is built in (--calib)".into());
        }
    }
    if args.threads.is_none() {
        decided.push(format!("the CPU's {} threads (--threads)", rayon::current_num_threads()));
    }
    (!decided.is_empty()).then(|| format!("decided without asking: {}", decided.join("; ")))
}
