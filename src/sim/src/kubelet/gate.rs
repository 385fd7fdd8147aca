//! A client whose connection can be cut.

use futures::StreamExt;
use http_body_util::{BodyDataStream, StreamBody};
use kube::Client;
use kube::client::Body;
use tokio::sync::watch;
use tower::BoxError;

/// `client`, with every request failing and every open watch ending while `cut` is true.
pub(super) fn gated(client: Client, cut: watch::Receiver<bool>) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (client, mut cut) = (client.clone(), cut.clone());
        async move {
            if *cut.borrow() {
                return Err(BoxError::from("no route to host"));
            }
            let (head, body) = client.send(request).await?.into_parts();
            let until_cut = async move {
                // An error means that the switch is gone: the node is being dropped.
                let _gone = cut.wait_for(|c| *c).await.map(|_| ());
            };
            let data = BodyDataStream::new(body).take_until(Box::pin(until_cut));
            let frames = data.map(|chunk| chunk.map(http_body::Frame::data));
            Ok::<_, BoxError>(http::Response::from_parts(head, StreamBody::new(frames)))
        }
    });
    Client::new(service, namespace)
}
