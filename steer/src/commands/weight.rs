//! `steer weight`: a backend's share of new connections.

use crate::api::client::Client;
use crate::cli::{Weight, WeightArgs};
use crate::dataplane::paths::Paths;

pub(super) async fn weight(args: &WeightArgs, paths: &Paths) -> anyhow::Result<()> {
    let weight = match args.weight {
        Weight::Of(weight) => Some(weight),
        Weight::Label => None,
    };
    let changed = Client::connect(paths).await?.weight(&args.target, weight).await?;
    super::ensure_steered_to(&args.target, &changed)?;
    let line = |name: &str, weight: u16| format!("{name} has weight {weight}\n");
    super::print(&changed.backends.iter().map(|backend| line(&backend.name, backend.weight)).collect::<String>())
}
