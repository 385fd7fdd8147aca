//! Families of phrases: each groups the wordings of one meaning across Kubernetes versions and drivers.
//!
//! The tables are data. They are searched in a fixed order, the more specific before the more general, and the first
//! family that occurs gives the meaning. A comment on each family says what its phrases have in common.

mod cloud;
mod kubernetes;
mod node;
mod objects;

use crate::meaning::Meaning;
use crate::structure::{Operation, Structure};

/// Component that can report a family. One wording means different things at a controller and at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportedBy {
    /// Any component.
    Any,
    /// The attach/detach controller or a CSI controller, not kubelet.
    Controller,
    /// kubelet or a node plugin, not a controller.
    Node,
    /// Any component, but only in a message about a detach.
    Detach,
}

impl ReportedBy {
    /// May this side report the operation? An unknown operation excludes [`ReportedBy::Detach`] alone.
    fn admits(self, operation: Option<Operation>) -> bool {
        match self {
            Self::Any => true,
            Self::Controller => !operation.is_some_and(Operation::is_node_side),
            Self::Node => !operation.is_some_and(Operation::is_controller_side),
            Self::Detach => operation == Some(Operation::Detach),
        }
    }
}

/// One meaning and the phrases that carry it (see `phrase::occurs` for their notation).
pub(crate) struct Family {
    /// A message with any of these phrases belongs to the family,
    phrases: &'static [&'static str],
    /// unless it has one of these as well.
    unless: &'static [&'static str],
    reported_by: ReportedBy,
    /// Makes the meaning, with the data that the message gives.
    meaning: fn(&Structure) -> Meaning,
}

/// Tables in the order in which they are searched.
const TABLES: &[&[Family]] = &[
    kubernetes::RECORDS,
    objects::REFERENCES,
    kubernetes::PLUGINS,
    objects::POD,
    node::DEVICES,
    cloud::REFUSALS,
    cloud::JOBS,
    cloud::HOLDERS,
    cloud::EXISTENCE,
    node::GENERAL,
];

/// Returns the meaning of the first family that occurs in the message's body.
pub(crate) fn find(structure: &Structure) -> Option<Meaning> {
    TABLES
        .iter()
        .flat_map(|table| table.iter())
        .find(|family| {
            family.reported_by.admits(structure.operation)
                && structure.says(family.phrases)
                && !structure.says(family.unless)
        })
        .map(|family| (family.meaning)(structure))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phrase::dead_term;

    #[test]
    fn phrases_are_alive() {
        let dead: Vec<_> = TABLES
            .iter()
            .flat_map(|table| table.iter())
            .flat_map(|family| family.phrases.iter().chain(family.unless))
            .filter_map(|phrase| dead_term(phrase).map(|term| (phrase, term)))
            .collect();
        assert_eq!(dead, []);
    }
}
