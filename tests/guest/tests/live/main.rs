//! The shipped agent on virtual machines whose disks are pulled out, come back, are encrypted or opened past the mount table.
//! Each test has a guest of its own with two agents, one for each level, and asks them as the controller does.

mod api;
mod fixture;
mod luks;
mod names;
mod recycled;
mod replaced;
mod unplugged;
mod users;
