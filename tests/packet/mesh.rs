//! A frontend that Swarm's routing mesh is behind too: what finds no ready backend is the mesh's, and stays so.

use steer_common::service::ServiceEntry;
use steer_common::state::BackendState::{Draining, Ready, Unready};
use steer_common::tcp::TcpState::{Established, FinForward, SynSent};
use steer_common::verdict::Counter::{DropHold, Follow, PassMesh, PassMeshFlow, SteerNew, SteerReuse};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, Flow, Hook, from_backend, from_client};

use super::story::connect;

stories! {
    nobody_ready_is_the_meshs_business: [SteerNew, PassMesh],
    a_flow_of_the_mesh_stays_there: [PassMesh, PassMeshFlow, SteerReuse],
    what_was_open_is_the_meshs_and_hurts_no_flow_of_ours: [SteerNew, Follow, Reply, PassMeshFlow],
    who_is_refused_here_hears_the_truth: [SteerNew, Reply],
    that_all_tasks_are_here_counts_for_a_while: [DropHold, PassMesh],
}

fn swarm(bench: &mut Bench) {
    bench.serve(&[1]);
    let flags = ServiceEntry::MESH;
    bench.settings(ServiceEntry { flags, hold_ns: 10_000_000_000, ..ServiceEntry::default() });
}

fn nobody_ready_is_the_meshs_business(bench: &mut Bench) {
    swarm(bench);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        bench.set_state(1, Ready);
        bench.send(hook, &from_client(port).syn(7)).goes_to(1, SteerNew);
        for (state, port) in [(Draining, port + 1), (Unready, port + 2)] {
            bench.set_state(1, state);
            bench.send(hook, &from_client(port).syn(7)).passes(PassMesh);
        }
    }
}

fn a_flow_of_the_mesh_stays_there(bench: &mut Bench) {
    swarm(bench);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let state = |bench: &Bench| bench.flows().last().copied();
        let of_mesh = |state| Some(Flow { generation: 0, ..Flow::of(port, 0, state) });
        bench.set_state(1, Unready);
        bench.send(hook, &from_client(port).syn(7)).passes(PassMesh);
        assert_eq!(state(bench), of_mesh(SynSent));
        bench.set_state(1, Ready);
        bench.send(hook, &from_client(port).syn(7)).passes(PassMesh);
        bench.send(hook, &from_client(port)).passes(PassMeshFlow);
        bench.send(hook, &from_client(port).payload(b"data")).passes(PassMeshFlow);
        bench.send(hook, &from_client(port).syn(8)).passes(PassMesh);
        assert_eq!(state(bench), of_mesh(Established));
        assert_eq!((bench.established(), bench.live(1)), (0, 0), "it takes no place of a flow that is steered");
        bench.send(hook, &from_client(port).fin()).passes(PassMeshFlow);
        assert_eq!(state(bench), of_mesh(FinForward));
        bench.send(hook, &from_client(port).syn(9)).goes_to(1, SteerReuse);
    }
}

fn what_was_open_is_the_meshs_and_hurts_no_flow_of_ours(bench: &mut Bench) {
    swarm(bench);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        bench.send(hook, &from_client(port).payload(b"open")).passes(PassMeshFlow);
        connect(bench, hook, port + 1);
        bench.send(hook, &from_client(port).payload(b"open")).passes(PassMeshFlow);
        bench.send(hook, &from_client(port + 1).payload(b"ours")).goes_to(1, Follow);
    }
}

fn who_is_refused_here_hears_the_truth(bench: &mut Bench) {
    swarm(bench);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        bench.send(hook, &from_client(port).syn(7)).goes_to(1, SteerNew);
        bench.reply(1, &from_backend(1, port).rst()).comes_from(FRONTEND);
        assert_eq!(bench.held(), [0; 0], "its next SYN would be the mesh's");
    }
}

fn that_all_tasks_are_here_counts_for_a_while(bench: &mut Bench) {
    bench.serve(&[1]);
    let flags = ServiceEntry::MESH | ServiceEntry::ALL_HERE;
    bench.settings(ServiceEntry { flags, hold_ns: 3_600_000_000_000, ..ServiceEntry::default() });
    bench.set_state(1, Unready);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        bench.hear_from_swarm(true);
        bench.send(hook, &from_client(port).syn(7)).is_dropped(DropHold);
        bench.forget_held();
        bench.hear_from_swarm(false);
        bench.send(hook, &from_client(port + 1).syn(7)).passes(PassMesh);
    }
}
