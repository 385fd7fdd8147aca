//! `/livez`, `/readyz` and `/metrics`. Each connection serves one request, see [`crate::listener`].

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::map_response;
use axum::response::Response;
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
        .layer(map_response(one_request))
}

/// Ends the connection after its reply: connections that wait for a next request would fill the listener's places.
async fn one_request(mut reply: Response) -> Response {
    reply
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    reply
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
