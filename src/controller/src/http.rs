//! `/livez`, `/readyz` and `/metrics`.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use tokio::sync::watch;

/// What the endpoints show.
#[derive(Clone)]
pub struct Endpoints {
    /// The metrics.
    pub registry: Arc<Registry>,
    /// Whether the watches have been listed once.
    pub ready: watch::Receiver<bool>,
}

/// The router.
pub fn router(endpoints: Endpoints) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(endpoints)
}

async fn ready(State(e): State<Endpoints>) -> (StatusCode, &'static str) {
    if *e.ready.borrow() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the watches are not ready")
    }
}

async fn metrics(State(e): State<Endpoints>) -> Result<String, StatusCode> {
    let mut text = String::new();
    encode(&mut text, &e.registry).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(text)
}
