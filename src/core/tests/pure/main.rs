//! Tests of the pure core: tables, properties and explored state spaces. One binary, so that it links once.

mod check;
mod diagnosis;
mod explore;
mod gaps;
mod hash;
mod journal;
mod machine;
mod proof;
mod properties;
mod refusals;
mod runbook;
mod schedules;
mod world;
