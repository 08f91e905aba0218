//! Sends on clients that wait for a backend: what was kept of their SYNs comes in once more, at the interface it came in on.
//!
//! The kernel hands a frame to the stack as if it had just been received there (`BPF_PROG_TEST_RUN` with live frames, Linux 5.18:
//! the program passes it, nothing more), so that it meets the same program as the client's own retransmission would a second or
//! three later, and is steered by the same decision.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::Xdp;
use aya::{TestRun as _, TestRunAttrs, TestRunOptions};
use steer_common::flow::{FlowKey, PendingEntry};
use steer_common::limits::PENDING_SECS;
use steer_common::service::ServiceId;

use super::frame::Headers;
use super::load::{program, program_mut};
use super::maps::Maps;
use super::read::walk;
use crate::host::links::links;

/// In the place of what was seen of a flow, which of one in `HELD` is nothing: it was sent on since it was held.
const SENT_ON: u64 = 1 << 63;

/// What those wait for who were not sent on since they were held: a service, and the index of its port. `now_secs`: seconds since boot.
pub fn waiting(maps: &Maps, now_secs: u32) -> Result<BTreeSet<(ServiceId, u8)>> {
    let mut waiting = BTreeSet::new();
    for entry in walk::entries(&maps.held).context("listing who waits")? {
        let (key, held) = entry.context("reading who waits")?;
        if held.flow.marks != SENT_ON && !is_old(&held, now_secs) {
            waiting.insert((key.service, held.flow.port_index));
        }
    }
    Ok(waiting)
}

/// Sends on everybody who waits; how many there were. Who finds nobody ready again is kept again. `now_secs`: seconds since boot.
pub fn replay(bpf: &mut Ebpf, maps: &mut Maps, now_secs: u32) -> Result<usize> {
    let keys = walk::keys(&maps.held).context("listing who waits")?;
    if keys.is_empty() {
        return Ok(0);
    }
    let links = links().context("listing interfaces")?;
    let macs: BTreeMap<u32, [u8; 6]> = links.into_iter().filter_map(|link| Some((link.index, link.mac?))).collect();
    let again: &mut Xdp = program_mut(bpf, program::REPLAY)?;
    let mut sent = 0;
    for key in keys {
        let Ok(mut held) = maps.held.get(&key, 0) else { continue };
        let is_old = is_old(&held, now_secs);
        // Before it comes in again: it may be held again.
        if held.flow.refusals == 0 || is_old {
            let _ = maps.held.remove(&key);
        } else if held.flow.marks == 0 {
            // One that was refused is remembered, so that the kernel can tell how often; but it is sent on once for each time.
            held.flow.marks = SENT_ON;
            let _ = maps.held.insert(key, held, 0);
        } else {
            continue;
        }
        if is_old {
            continue;
        }
        let uplink = held.flow.uplink;
        let Some(mac) = macs.get(&uplink) else { continue };
        let frame = frame(&key, &held, *mac);
        let context: Vec<u8> =
            [0, frame.len() as u32, 0, uplink].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..Default::default()
        };
        again.test_run(options).with_context(|| format!("handing a SYN to interface {uplink} once more"))?;
        sent += 1;
    }
    Ok(sent)
}

/// Its client has given up, or got through by itself.
fn is_old(held: &PendingEntry, now_secs: u32) -> bool {
    now_secs.saturating_sub(held.flow.last_seen) > PENDING_SECS
}

/// The client's SYN, as a frame for the host's interface with that MAC address.
fn frame(key: &FlowKey, held: &PendingEntry, mac: [u8; 6]) -> Vec<u8> {
    let PendingEntry { flow, syn } = held;
    let options = syn.options.iter().flat_map(|word| word.to_ne_bytes());
    let options: Vec<u8> = options.take(usize::from(syn.options_len)).collect();
    Headers {
        // From nobody in particular: a locally administered address.
        src_mac: [2, 0, 0, 0, 0, 0],
        dst_mac: mac,
        src: (key.client, key.client_port),
        dst: (flow.frontend, flow.frontend_port),
        tos: syn.tos,
        ttl: syn.ttl,
        seq: flow.isn,
        flags: syn.flags,
        window: syn.window,
        options: &options,
    }
    .frame()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use steer_common::addr::{Addr, Port};
    use steer_common::backend::BackendId;
    use steer_common::csum;
    use steer_common::flow::{FlowEntry, SYN_OPTIONS, SynEntry};
    use steer_common::tcp::TcpFlags;

    use super::*;
    use crate::dataplane::frame::words;

    #[test]
    fn a_syn_is_put_together_as_its_client_sent_it() {
        let client = Addr::from(Ipv4Addr::new(192, 0, 2, 7));
        let key = FlowKey::new(client, Port::new(40_000), ServiceId(1), steer_common::addr::TCP);
        let mut options = [0; SYN_OPTIONS / 4];
        options[0] = u32::from_ne_bytes([2, 4, 5, 0xb4]);
        let held = PendingEntry {
            flow: FlowEntry {
                frontend: Ipv4Addr::new(10, 0, 0, 1).into(),
                frontend_port: Port::new(9000),
                backend: BackendId::NONE,
                generation: 0,
                isn: 0x0102_0304_u32.to_be(),
                uplink: 2,
                last_seen: 0,
                port_index: 0,
                refusals: 0,
                refused: BackendId::NONE,
                marks: 0,
            },
            syn: SynEntry {
                window: 64_240_u16.to_be(),
                flags: TcpFlags::SYN,
                ttl: 61,
                tos: 8,
                options_len: 4,
                pad: 0,
                options,
            },
        };
        let frame = frame(&key, &held, [2, 0, 0, 0, 0, 9]);
        assert_eq!(
            frame,
            [
                [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 0, 8, 0].as_slice(),
                &[0x45, 8, 0, 44, 0, 0, 0x40, 0, 61, 6, 0x71, 0xbc, 192, 0, 2, 7, 10, 0, 0, 1],
                &[0x9c, 0x40, 0x23, 0x28, 1, 2, 3, 4, 0, 0, 0, 0, 0x60, 2, 0xfa, 0xf0],
                &frame[50..52],
                &[0, 0, 2, 4, 5, 0xb4],
            ]
            .concat()
        );
        for part in [&frame[14..34], &[&frame[26..34], &[0, 6, 0, 24], &frame[34..]].concat()] {
            assert_eq!(csum::finish(words(part)), 0, "the sum over a part with its checksum");
        }
    }
}
