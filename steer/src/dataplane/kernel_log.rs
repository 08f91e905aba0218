//! What the programs have to say (`aya-log`): rare things only, for the packet path counts instead.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

/// Passes the programs' messages on to the agent's log, until the task is aborted.
pub fn follow(bpf: &mut Ebpf) -> Result<JoinHandle<()>> {
    let logger = EbpfLogger::init(bpf).context("opening the programs' log")?;
    #[expect(
        deprecated,
        reason = "the replacement is an unsafe function, for types whose descriptor may change; this one's does not"
    )]
    let mut logger =
        AsyncFd::with_interest(logger, Interest::READABLE).context("waiting for the programs' messages")?;
    Ok(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}
