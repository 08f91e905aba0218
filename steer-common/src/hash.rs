//! The flow hash: the same bytes give the same value in the kernel and in tests.

use crate::addr::{Addr, Port};

/// Mixes one word into a running hash (MurmurHash3's body and finaliser: short, no tables, no division).
#[inline(always)]
const fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

#[inline(always)]
const fn finish(hash: u32) -> u32 {
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// Hash of a client's address alone.
#[inline(always)]
pub const fn of_client(client: Addr) -> u32 {
    let [a, b, c, d] = client.0;
    finish(mix(mix(mix(mix(0, a), b), c), d))
}

/// Hash of a flow: client address and port, and the port of the frontend.
#[inline(always)]
pub const fn of_flow(client: Addr, client_port: Port, frontend_port: Port) -> u32 {
    let [a, b, c, d] = client.0;
    let ports = (client_port.0 as u32) << 16 | frontend_port.0 as u32;
    finish(mix(mix(mix(mix(mix(0, a), b), c), d), ports))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn client_ports_spread_evenly_over_a_table() {
        const BUCKETS: usize = 16;
        const FLOWS: u32 = 28_000;
        let mut counts = [0_u32; BUCKETS];
        let client = Addr::from(Ipv4Addr::new(10, 0, 0, 2));
        for port in 0..FLOWS {
            let hash = of_flow(client, Port::new(32_768 + port as u16), Port::new(80));
            counts[hash as usize % BUCKETS] += 1;
        }
        let mean = FLOWS / BUCKETS as u32;
        for (bucket, count) in counts.iter().enumerate() {
            assert!(count.abs_diff(mean) < mean / 10, "bucket {bucket} has {count}, mean {mean}");
        }
    }
}
