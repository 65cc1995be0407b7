//! What can go wrong on a device, as values.

use std::fmt;

/// Why a device did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// It is gone: reset by the system, unplugged, or its driver has crashed. What it held is lost.
    Lost(String),
    /// It has no room, or not as much as it was allowed to take.
    Memory {
        /// Bytes that were asked for.
        wanted: u64,
        /// Bytes that are taken.
        taken: u64,
        /// Bytes that may be taken; none where the driver refused.
        allowed: Option<u64>,
    },
    /// The driver, or what compiles kernels for it, refused something.
    Refused(String),
    /// A kernel computes something else than the CPU.
    Wrong(String),
}

/// The result of everything that a device does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Lost(why) => write!(f, "the device was lost: {why}"),
            Error::Memory { wanted, taken, allowed: Some(allowed) } => {
                write!(f, "{wanted} bytes more than the {taken} of {allowed} that are taken do not fit on the device")
            }
            Error::Memory { wanted, taken, allowed: None } => {
                write!(f, "the driver has no {wanted} bytes on the device, of which {taken} are taken by this program")
            }
            Error::Refused(why) => write!(f, "the device refused: {why}"),
            Error::Wrong(what) => write!(f, "the device computes wrong numbers: {what}"),
        }
    }
}

impl std::error::Error for Error {}
