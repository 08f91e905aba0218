//! Beside a mesh that lives: nodes without steer, nodes without a task, and connections that are older than steer.

use std::sync::atomic::Ordering;

use steer_tests::long_lived::LongLived;
use steer_tests::nodes::Cluster;
use steer_tests::wait_until;
use steer_tests::world::HOST;

use super::{ECHO, LIMIT, all_names, is_of_the_mesh, is_steered, names, split, web};

#[test]
fn a_node_without_steer_has_its_mesh_and_a_node_with_steer_its_own_tasks() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.manager.create_service(web().global());
    cluster.manager.wait_tasks("web", cluster.nodes().len(), "greeter:v1");
    let all = all_names(&cluster);
    assert_eq!(all.len(), cluster.nodes().len(), "one on each");

    cluster.steer_manager().wait_ready("web", 1);
    is_steered(&cluster, HOST, &cluster.manager);
    for worker in &cluster.workers {
        is_of_the_mesh(&cluster, worker.address, &all);
    }

    cluster.agent = None;
    cluster.workers[0].start_agent();
    cluster.workers[0].wait_ready("web", 1);
    is_of_the_mesh(&cluster, HOST, &all);
    is_steered(&cluster, cluster.workers[0].address, &cluster.workers[0].docker);
}

#[test]
fn a_node_with_no_task_of_its_own_leaves_what_is_new_to_the_mesh_until_it_has_one() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.steer_all();
    cluster.manager.drain_node(true);
    cluster.manager.create_service(web());
    cluster.manager.wait_tasks("web", 1, "greeter:v1");
    let elsewhere = all_names(&cluster);
    assert!(names(&cluster.manager).is_empty(), "{elsewhere:?}");
    is_of_the_mesh(&cluster, HOST, &elsewhere);
    let open = LongLived::start(&cluster.world.client, (HOST, ECHO));
    assert!(elsewhere.contains(&open.backend));

    // A task of its own: on each node then, since Swarm spreads them.
    cluster.manager.drain_node(false);
    let nodes = cluster.nodes().len();
    cluster.manager.scale("web", nodes as i64);
    cluster.manager.wait_tasks("web", nodes, "greeter:v1");
    cluster.agent().wait_ready("web", 1);
    is_steered(&cluster, HOST, &cluster.manager);
    let exchanged = open.counter();
    let before = exchanged.load(Ordering::Relaxed);
    wait_until("what is open goes on", LIMIT, || match exchanged.load(Ordering::Relaxed) {
        now if now >= before + 10 => Ok(()),
        now => Err(format!("{now} after {before}")),
    });
    open.finish_unharmed();
    let counters = cluster.agent().counters();
    assert_eq!((counters["drop_hold"], counters["reset_no_backend"]), (0, 0), "{counters:?}");

    // And the other way round: its task goes, and who comes then is answered all the same.
    cluster.manager.drain_node(true);
    cluster
        .agent()
        .wait_for("it has no task any more", |status| status.service("web").is_none_or(|web| web.backends.is_empty()));
    cluster.manager.wait_tasks("web", nodes, "greeter:v1");
    is_of_the_mesh(&cluster, HOST, &all_names(&cluster));
}

#[test]
fn what_was_open_through_the_mesh_when_steer_came_stays_there_until_it_ends() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.manager.create_service(web().global());
    let nodes = cluster.nodes().len();
    cluster.manager.wait_tasks("web", nodes, "greeter:v1");
    let all = all_names(&cluster);
    let mut open = Vec::new();
    for (address, _) in cluster.nodes() {
        is_of_the_mesh(&cluster, address, &all);
        // The mesh takes them in turn: each node has some of its own task's, and some of every other's.
        let here: Vec<_> = (0..2 * nodes).map(|_| LongLived::start(&cluster.world.client, (address, ECHO))).collect();
        assert!(all.iter().all(|task| here.iter().any(|life| life.backend == *task)), "{all:?}");
        open.extend(here);
    }
    let go_on = |what: &str| {
        let counters: Vec<_> = open.iter().map(LongLived::counter).collect();
        let now = || counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let before = now();
        wait_until(what, LIMIT, || {
            let now = now();
            assert!(!open.iter().any(LongLived::is_over), "one has broken: {before:?}, {now:?}");
            if now.iter().zip(&before).all(|(now, before)| *now >= before + 10) {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        });
    };

    cluster.steer_all();
    cluster.agent().wait_ready("web", 1);
    cluster.workers.iter().for_each(|worker| drop(worker.wait_ready("web", 1)));
    for (address, docker) in cluster.nodes() {
        is_steered(&cluster, address, docker);
    }
    go_on("with steer they go on");
    // Steer goes, and they still do; so does what it has steered.
    let steered = LongLived::start(&cluster.world.client, (HOST, ECHO));
    assert!(names(&cluster.manager).contains(&steered.backend));
    steered.finish_unharmed();
    cluster.agent = None;
    cluster.workers.iter_mut().for_each(|worker| worker.stop_agent());
    go_on("without it again they go on");
    for life in open {
        life.finish_unharmed();
    }
    assert!(split(&cluster, HOST, 4, false).is_ok_and(|answered| answered.len() == nodes.min(4)));
}
