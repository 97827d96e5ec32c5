//! What went wrong where it is not the system's doing: these decide the exit status.

/// An error that the user can mend. Every other error is the system's.
#[derive(Debug)]
pub enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// A file that was given holds something else.
    File(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Usage(text) | Failure::File(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Failure {}

/// The exit status of an error: 2 usage, 3 bad file, 7 the system.
pub fn status(error: &(dyn std::error::Error + 'static)) -> u8 {
    match error.downcast_ref() {
        Some(Failure::Usage(_)) => 2,
        Some(Failure::File(_)) => 3,
        None => 7,
    }
}
