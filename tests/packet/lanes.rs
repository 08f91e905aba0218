//! One client port, several frontends of one service at the same time: each flow has a lane and a backend to itself.

use std::net::{Ipv4Addr, SocketAddrV4};

use steer_common::limits::LANES;
use steer_common::tcp::TcpState::{Established, SynReceived, SynSent};
use steer_common::verdict::Counter::{DropLanes, Follow, SteerNew, SteerRetransmit};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, FRONTEND_2, Flow, Hook, from_backend, from_client};

stories! {
    one_client_port_reaches_two_addresses_of_the_host: [SteerNew, SteerRetransmit, Follow, Reply],
    two_frontends_never_share_a_backend_for_one_client_port: [SteerNew, DropLanes, Follow, Reply],
    lanes_end: [SteerNew, DropLanes, Follow],
    a_closed_flow_makes_room_for_another_frontend: [SteerNew, Follow, Reply],
}

fn one_client_port_reaches_two_addresses_of_the_host(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let (one, two) = (from_client(port), from_client(port).to(FRONTEND_2));
        let first = bench.send(hook, &one.clone().syn(7)).goes_somewhere(SteerNew);
        let second = bench.send(hook, &two.clone().syn(8)).goes_somewhere(SteerNew);
        assert_ne!(first, second);
        assert_eq!(bench.service_state().extra_lanes, 1);
        // Each reply carries the address its own client asked for.
        bench.reply(first, &from_backend(first, port).syn_ack()).comes_from(FRONTEND);
        bench.reply(second, &from_backend(second, port).syn_ack()).comes_from(FRONTEND_2);
        bench.send(hook, &one.clone().syn(7)).goes_to(first, SteerRetransmit);
        bench.send(hook, &two.clone().syn(8)).goes_to(second, SteerRetransmit);
        for state in [SynReceived, Established] {
            let in_first = Flow::of(port, first, state);
            let in_second = Flow { lane: 1, frontend: FRONTEND_2, ..Flow::of(port, second, state) };
            assert_eq!(
                bench.flows().into_iter().filter(|flow| flow.client_port == port).collect::<Vec<_>>(),
                [in_first, in_second]
            );
            bench.send(hook, &one).goes_to(first, Follow);
            bench.send(hook, &two).goes_to(second, Follow);
        }
        bench.reply(first, &from_backend(first, port).payload(b"one")).comes_from(FRONTEND);
        bench.reply(second, &from_backend(second, port).payload(b"two")).comes_from(FRONTEND_2);
    }
    assert_eq!((bench.live(1), bench.live(2)), (2, 2));
}

fn two_frontends_never_share_a_backend_for_one_client_port(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        bench.send(hook, &from_client(port).syn(7)).goes_to(1, SteerNew);
        // Its replies could not be told apart. The client tries again, and by then the other one may have ended.
        bench.send(hook, &from_client(port).syn(8).to(FRONTEND_2)).is_dropped(DropLanes);
        assert_eq!(bench.service_state().none_since[0].first, 0, "others do find a backend");
        bench.reply(1, &from_backend(1, port).rst()).comes_from(FRONTEND);
        bench.send(hook, &from_client(port).syn(8).to(FRONTEND_2)).goes_to(1, SteerNew);
        bench.send(hook, &from_client(port).to(FRONTEND_2)).goes_to(1, Follow);
    }
}

fn lanes_end(bench: &mut Bench) {
    bench.serve(&[1, 2, 3, 4, 5, 6]);
    let frontends: Vec<_> = (1..=5).map(|host| SocketAddrV4::new(Ipv4Addr::new(10, 203, 0, host), 9000)).collect();
    frontends.iter().for_each(|&at| bench.publish(at, 0, 0));
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let (fit, over) = frontends.split_at(LANES.into());
        let mut used = Vec::new();
        for &at in fit {
            used.push(bench.send(hook, &from_client(port).syn(7).to(at)).goes_somewhere(SteerNew));
        }
        let flows: Vec<Flow> = bench.flows().into_iter().filter(|flow| flow.client_port == port).collect();
        let expected = fit.iter().zip(&used).zip(0..).map(|((&frontend, &id), lane)| Flow {
            frontend,
            lane,
            ..Flow::of(port, id, SynSent)
        });
        assert_eq!(flows, expected.collect::<Vec<_>>());
        bench.send(hook, &from_client(port).syn(7).to(over[0])).is_dropped(DropLanes);
        for (&at, &id) in fit.iter().zip(&used) {
            bench.send(hook, &from_client(port).to(at)).goes_to(id, Follow);
        }
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), usize::from(LANES), "each has a backend to itself");
    }
}

fn a_closed_flow_makes_room_for_another_frontend(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let id = super::story::connect(bench, hook, port);
        super::story::close(bench, hook, port, id);
        let new = bench.send(hook, &from_client(port).syn(8).to(FRONTEND_2)).goes_somewhere(SteerNew);
        let flow = Flow { frontend: FRONTEND_2, ..Flow::of(port, new, SynSent) };
        assert_eq!(bench.flows().into_iter().filter(|flow| flow.client_port == port).collect::<Vec<_>>(), [flow]);
        assert_eq!(bench.service_state().extra_lanes, 0);
    }
}
