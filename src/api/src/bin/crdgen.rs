//! Writes the CustomResourceDefinitions to `deploy/crds`, or to the folder given as the only argument.

use std::path::PathBuf;

fn main() -> Result<(), String> {
    let folder = std::env::args().nth(1).map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds")),
        PathBuf::from,
    );
    for crd in reattach_api::all_crds() {
        let (name, body) = reattach_api::crd_yaml(&crd)?;
        let path = folder.join(name);
        std::fs::write(&path, body).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}
