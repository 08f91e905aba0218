use steer_common::verdict::Counter;
use steer_tests::bpf::*;
#[test]
fn smoke() {
    let t = std::time::Instant::now();
    bench(|b| {
        eprintln!("bench {:?}", t.elapsed());
        b.serve(&[1]);
        for hook in Hook::BOTH {
            b.send(hook, &from_client(40000).syn(7))
                .goes_to(1, if hook == Hook::Xdp { Counter::SteerNew } else { Counter::SteerRetransmit });
        }
        b.reply(1, &from_backend(1, 40000).syn_ack()).comes_from(FRONTEND);
        eprintln!("{:?}", b.flows());
        eprintln!("ran {:?}", t.elapsed());
    });
    eprintln!("gone {:?}", t.elapsed());
}
