//! `steer detach`: steer leaves the host. A living agent does it; without one, this command does.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::bail;
use steer_common::state::BackendState;
use tokio::time::sleep;

use super::lock::lock;
use super::report::count;
use crate::api::client::{Client, ClientError};
use crate::cli::DetachArgs;
use crate::dataplane;
use crate::dataplane::paths::Paths;
use crate::dataplane::read::{ReadError, Reader};

/// How often it is looked whether the last flow has ended.
const TICK: Duration = Duration::from_millis(100);

pub(super) async fn detach(args: &DetachArgs, paths: &Paths) -> anyhow::Result<()> {
    match Client::connect(paths).await {
        Ok(mut client) => {
            let left = client.detach(args.now).await?.live_flows;
            if !args.now && left > 0 {
                super::print(&format!("no new connections are taken, {} left\n", count(left, "connection")))?;
            }
            wait_until_removed(paths).await?;
        }
        Err(ClientError::NotRunning { .. }) => {
            if !args.now {
                close_and_wait(paths).await?;
            }
            if !paths.all.exists() {
                bail!(ReadError::NoDataPlane { instance: paths.instance.clone() });
            }
            let Ok(_lock) = lock(paths)? else {
                bail!("an agent of this instance is just starting: once it is up, `steer detach` again");
            };
            dataplane::detach::now(paths)?;
        }
        Err(error) => return Err(error.into()),
    }
    super::print(&format!("steer is off this host (instance {})\n", paths.instance))
}

/// Waits until a living agent has removed all pins: it may be of another version than this command, as after an upgrade, and has its
/// own beside where this one's would be. An agent that dies meanwhile leaves them: that is told.
async fn wait_until_removed(paths: &Paths) -> anyhow::Result<()> {
    while paths.all.exists() {
        if let Err(ClientError::NotRunning { .. }) = Client::connect(paths).await
            && paths.all.exists()
        {
            bail!("the agent ended before it was done: `steer detach` again finishes it");
        }
        sleep(TICK).await;
    }
    Ok(())
}

/// Without an agent: takes no new flows, then waits for the last flow.
async fn close_and_wait(paths: &Paths) -> anyhow::Result<()> {
    let reader = Reader::open(paths)?;
    dataplane::detach::close(paths)?;
    // Not what is counted: with no agent nobody puts a count right, nor takes away the flows of a backend that is gone.
    let left = || -> Result<u64, ReadError> {
        let snapshot = reader.snapshot()?;
        let backends = snapshot.backends().filter(|(_, backend)| backend.state != BackendState::Gone);
        let there: HashSet<_> = backends.map(|(_, backend)| (backend.id, backend.generation)).collect();
        let mut left = 0;
        for flow in reader.flows()? {
            let flow = flow?;
            left += u64::from(flow.is_current() && there.contains(&(flow.backend, flow.generation)));
        }
        Ok(left)
    };
    let mut remaining = left()?;
    if remaining > 0 {
        let remaining = count(remaining, "connection");
        super::print(&format!("no new connections are taken, {remaining} left; `steer detach --now` breaks them\n"))?;
    }
    while remaining > 0 {
        sleep(TICK).await;
        remaining = left()?;
    }
    Ok(())
}
