//! The requests to the clouds, as each provider's limiter counts them.

use crate::Providers;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use reattach_provider_api::RequestKind;
use reattach_provider_api::limiter::{RequestOutcome, Usage};
use std::fmt;

/// The provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

/// One kind of request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    provider: String,
    kind: &'static str,
    outcome: &'static str,
}

/// Registers the metrics of these providers. They are read from the limiters at each scrape.
pub fn register(registry: &mut Registry, providers: &Providers) {
    registry.register_collector(Box::new(CloudRequests(providers.clone())));
}

struct CloudRequests(Providers);

impl fmt::Debug for CloudRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudRequests").finish_non_exhaustive()
    }
}

impl Collector for CloudRequests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usages: Vec<(&str, Usage)> = self
            .0
            .all()
            .filter_map(|p| Some((p.name(), p.limiter()?.usage())))
            .collect();
        encode_requests(&mut encoder, &usages)?;
        let waited = |usage: &Usage| Some(usage.waited.as_secs_f64());
        let mut counter = encoder.encode_descriptor(
            "reattach_cloud_wait",
            "Time that looks at the cloud waited for their turn",
            Some(&Unit::Seconds),
            MetricType::Counter,
        )?;
        for (labels, value) in of_each(&usages, waited) {
            let mut one = counter.encode_family(&labels)?;
            one.encode_counter::<NoLabelSet, f64, f64>(&value, None)?;
        }
        let budget = |usage: &Usage| Some(i64::from(usage.budget));
        let mut gauge = encoder.encode_descriptor(
            "reattach_cloud_budget",
            "Looks at the cloud that may be sent at once",
            None,
            MetricType::Gauge,
        )?;
        encode_gauges(&mut gauge, of_each(&usages, budget))?;
        let remaining = |usage: &Usage| usage.remaining.map(i64::from);
        let mut gauge = encoder.encode_descriptor(
            "reattach_cloud_remaining",
            "Requests that the cloud says all clients of the account have left in its present window",
            None,
            MetricType::Gauge,
        )?;
        encode_gauges(&mut gauge, of_each(&usages, remaining))
    }
}

fn encode_requests(encoder: &mut DescriptorEncoder<'_>, usages: &[(&str, Usage)]) -> fmt::Result {
    let mut requests = encoder.encode_descriptor(
        "reattach_cloud_requests",
        "Requests to the cloud, sent or held back",
        None,
        MetricType::Counter,
    )?;
    for (provider, usage) in usages {
        for kind in RequestKind::ALL {
            for outcome in RequestOutcome::ALL {
                let labels = RequestLabels {
                    provider: (*provider).to_owned(),
                    kind: kind_label(kind),
                    outcome: outcome_label(outcome),
                };
                let mut one = requests.encode_family(&labels)?;
                one.encode_counter::<NoLabelSet, u64, f64>(&usage.of(kind, outcome), None)?;
            }
        }
    }
    Ok(())
}

/// The value of each provider that has one.
fn of_each<T>(
    usages: &[(&str, Usage)],
    value: impl Fn(&Usage) -> Option<T>,
) -> Vec<(ProviderLabels, T)> {
    let one = |(provider, usage): &(&str, Usage)| {
        let provider = (*provider).to_owned();
        Some((ProviderLabels { provider }, value(usage)?))
    };
    usages.iter().filter_map(one).collect()
}

fn encode_gauges(
    encoder: &mut MetricEncoder<'_>,
    values: Vec<(ProviderLabels, i64)>,
) -> fmt::Result {
    for (labels, value) in values {
        encoder.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

fn kind_label(kind: RequestKind) -> &'static str {
    match kind {
        RequestKind::Read => "read",
        RequestKind::List => "list",
        RequestKind::Change => "change",
    }
}

fn outcome_label(outcome: RequestOutcome) -> &'static str {
    match outcome {
        RequestOutcome::Answered => "answered",
        RequestOutcome::Refused => "refused",
        RequestOutcome::Unanswered => "unanswered",
        RequestOutcome::Held => "held",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use reattach_cloud_simulator::{CloudSim, clock::tokio_from, in_memory};
    use reattach_linode::{LinodeConfig, LinodeProvider, Token};
    use reattach_provider_api::Provider;
    use std::sync::Arc;

    #[tokio::test(start_paused = true)]
    async fn each_metric_of_a_provider_is_in_the_docs() {
        let sim = CloudSim::new(tokio_from("2026-03-02T03:00:00Z".parse().unwrap()));
        let token = Token::new("test-token").unwrap();
        let config = LinodeConfig::new(token, Some("https://linode.invalid")).unwrap();
        let provider = LinodeProvider::new(in_memory(sim), config);
        provider.describe_volumes(&["7".into()]).await;
        let mut providers = Providers::default();
        providers.register(Arc::new(provider));
        let mut registry = Registry::default();
        register(&mut registry, &providers);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let one =
            r#"reattach_cloud_requests_total{provider="linode",kind="read",outcome="answered"} 1"#;
        assert!(text.lines().any(|line| line == one), "{text}");
        let docs = include_str!("../../../../docs/providers.md");
        let values = text.lines().filter(|line| !line.starts_with('#'));
        let names = values.filter_map(|line| line.split('{').next());
        for name in names {
            assert!(docs.contains(&format!("`{name}`")), "{name}");
        }
    }
}
