//! Real kubelets, and the shipped agent and controller that judge and heal what happens to them. One test per stage.

// The stage for the shipped binaries on a real control plane; its simulated kubelets are not used here.
#[allow(dead_code)]
#[path = "../../../controlplane/tests/live/common/mod.rs"]
mod common;
mod dead;
mod lost;
mod partition;
mod plugin;
mod recycled;
mod scene;
mod truth;
