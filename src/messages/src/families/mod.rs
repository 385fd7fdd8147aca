//! Families of phrases: each groups the wordings of one meaning across Kubernetes versions and drivers.
//!
//! The tables are data. They are asked in a fixed order, the more specific before the more general, and the first
//! family that occurs gives the meaning. A comment on each family says what its members have in common.

mod cloud;
mod kubernetes;
mod node;
mod objects;

use crate::meaning::Meaning;
use crate::structure::{Operation, Structure};

/// Where a family can be reported; the same words mean different things on the two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// By anyone.
    Any,
    /// By the attach/detach controller or a CSI controller; not by kubelet.
    Controller,
    /// By kubelet or a node plugin; not by a controller.
    Node,
    /// Only for a detach.
    Detach,
}

impl Side {
    /// An operation that is not known excludes nothing but [`Side::Detach`].
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
    /// Any of these makes a message a member …
    phrases: &'static [&'static str],
    /// … unless one of these occurs as well.
    unless: &'static [&'static str],
    /// Where it can be reported.
    side: Side,
    /// The meaning, with the data that the message gives.
    meaning: fn(&Structure) -> Meaning,
}

/// The tables in the order in which they are asked.
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

/// The meaning of the first family that occurs in the message's body.
pub(crate) fn find(structure: &Structure) -> Option<Meaning> {
    TABLES
        .iter()
        .flat_map(|table| table.iter())
        .find(|family| {
            family.side.admits(structure.operation)
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
