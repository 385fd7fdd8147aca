//! The shipped binaries on a real control plane. One test per stage, so that stages run side by side.

mod common;
mod crash;
mod dead_node;
mod errors;
mod hold;
mod incident;
mod limits;
mod lost;
mod observe;
mod orphan;
mod people;
mod refusals;
mod restarted;
mod rows;
mod stuck;
mod stuck_record;
