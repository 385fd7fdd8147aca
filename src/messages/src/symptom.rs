//! Parses a message and finds its meaning.

use crate::Message;
use crate::classify;
use crate::driver::StorageKind;
use crate::meaning::Meaning;
use crate::structure::{Operation, structure};

/// A parsed message with its meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symptom {
    /// What the message means.
    pub meaning: Meaning,
    /// Volume as the message names it: a PersistentVolume, a volume of the pod or a handle.
    pub volume: Option<String>,
    /// Operation that failed.
    pub(crate) operation: Option<Operation>,
    /// Node as the message names it.
    pub(crate) node: Option<String>,
    /// Driver, from [`Message::driver`] or from the text.
    pub(crate) driver: Option<String>,
    /// Kind of storage behind the driver.
    pub(crate) storage: StorageKind,
}

/// Parses a message and finds its meaning. Never fails: every text has a reading.
pub fn read(message: &Message) -> Symptom {
    let structure = structure(message);
    Symptom {
        meaning: classify::meaning(message, &structure),
        volume: structure.volume,
        operation: structure.operation,
        node: structure.node,
        driver: structure.driver,
        storage: structure.storage,
    }
}
