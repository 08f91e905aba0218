//! What Docker's own name server says inside a container's network namespace.
//!
//! It listens at a port of dockerd's choice, which rules inside the namespace put in the place of port 53. A socket is its namespace's
//! for as long as it lives, whoever uses it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::time::Duration;

use simple_dns::rdata::{OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use tokio::net::UdpSocket;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::netns::Netns;

/// The same in every container that has one.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// It is on this host, and knows by heart what is asked here.
const LIMIT: Duration = Duration::from_millis(200);
/// Names asked for at once: as many as have room in the buffers of a socket.
const AT_ONCE: usize = 32;
/// Room for the largest answer: 64 addresses of the longest name.
const SIZE: u16 = 20_000;

/// The addresses of names, in their order; `None` = no answer, or none with addresses. Within a tokio runtime.
pub async fn addresses(netns: Arc<Netns>, names: &[String]) -> io::Result<Vec<Option<BTreeSet<Ipv4Addr>>>> {
    // A new one each time: where its packets go is decided by the first one, and dockerd may have restarted.
    let socket = spawn_blocking(move || netns.visit(connect)).await.map_err(io::Error::other)???;
    let socket = UdpSocket::from_std(socket)?;
    let ids: Vec<(u16, &String)> = (0..).zip(names).collect();
    let mut found = BTreeMap::new();
    for some in ids.chunks(AT_ONCE) {
        // Whatever is not there by then says nothing.
        if let Ok(outcome) = timeout(LIMIT, exchange(&socket, some, &mut found)).await {
            outcome?;
        }
    }
    Ok(ids.iter().map(|(id, _)| found.remove(id).flatten()).collect())
}

fn connect() -> io::Result<StdSocket> {
    let socket = StdSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SERVER)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Asks for some names, until each has its answer.
async fn exchange(
    socket: &UdpSocket,
    names: &[(u16, &String)],
    found: &mut BTreeMap<u16, Option<BTreeSet<Ipv4Addr>>>,
) -> io::Result<()> {
    for (id, name) in names {
        match question(*id, name) {
            Ok(bytes) => {
                socket.send(&bytes).await?;
            }
            // A name that DNS has no room for.
            Err(_) => {
                found.insert(*id, None);
            }
        }
    }
    let mut buffer = vec![0; SIZE.into()];
    while !names.iter().all(|(id, _)| found.contains_key(id)) {
        let length = socket.recv(&mut buffer).await?;
        if let Some((id, addresses)) = buffer.get(..length).and_then(answer) {
            found.insert(id, addresses);
        }
    }
    Ok(())
}

/// Recursion is not asked for: a name that Docker does not know is passed on to the host's name servers, which need not look far.
fn question(id: u16, name: &str) -> simple_dns::Result<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.questions.push(Question::new(Name::new(name)?, TYPE::A.into(), CLASS::IN.into(), false));
    *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: SIZE, version: 0 });
    packet.build_bytes_vec()
}

/// Which question it answers, and with which addresses; `None` = none, or not all.
fn answer(bytes: &[u8]) -> Option<(u16, Option<BTreeSet<Ipv4Addr>>)> {
    let packet = Packet::parse(bytes).ok().filter(|packet| packet.has_flags(PacketFlag::RESPONSE))?;
    let is_whole = packet.rcode() == RCODE::NoError && !packet.has_flags(PacketFlag::TRUNCATION);
    let address = |data: &RData<'_>| match data {
        RData::A(found) => Some(Ipv4Addr::from(found.address)),
        _ => None,
    };
    let addresses: BTreeSet<Ipv4Addr> = packet.answers.iter().filter_map(|record| address(&record.rdata)).collect();
    Some((packet.id(), (is_whole && !addresses.is_empty()).then_some(addresses)))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use simple_dns::ResourceRecord;
    use simple_dns::rdata::A;

    use super::*;

    const NAME: &str = "tasks.web.shop_front";

    #[test]
    fn a_question_is_written_as_name_servers_read_it() {
        let mut expected = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        expected.extend(b"\x05tasks\x03web\x0ashop_front\x00\x00\x01\x00\x01");
        let [high, low] = SIZE.to_be_bytes();
        expected.extend([0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        assert_eq!(question(7, NAME).unwrap(), expected);
        assert!(question(7, &"x".repeat(64)).is_err(), "no label is that long");
    }

    fn reply(flags: PacketFlag, code: RCODE, addresses: &[u8]) -> Vec<u8> {
        let mut packet = Packet::new_reply(7);
        packet.set_flags(flags);
        *packet.rcode_mut() = code;
        let name = Name::new(NAME).unwrap();
        packet.questions.push(Question::new(name.clone(), TYPE::A.into(), CLASS::IN.into(), false));
        let record = |last: &u8| {
            let address = A::from(Ipv4Addr::new(10, 0, 1, *last));
            ResourceRecord::new(name.clone(), CLASS::IN, 600, RData::A(address))
        };
        packet.answers.extend(addresses.iter().map(record));
        packet.build_bytes_vec().unwrap()
    }

    #[rstest]
    #[case::addresses(PacketFlag::RECURSION_AVAILABLE, RCODE::NoError, &[11, 12, 11], Some(vec![11, 12]))]
    #[case::none(PacketFlag::RECURSION_AVAILABLE, RCODE::NoError, &[], None)]
    #[case::not_all(PacketFlag::TRUNCATION, RCODE::NoError, &[11], None)]
    #[case::no_such_name(PacketFlag::RECURSION_AVAILABLE, RCODE::NameError, &[], None)]
    #[case::a_failure(PacketFlag::RECURSION_AVAILABLE, RCODE::ServerFailure, &[11], None)]
    fn an_answer_is_read(
        #[case] flags: PacketFlag,
        #[case] code: RCODE,
        #[case] addresses: &[u8],
        #[case] expected: Option<Vec<u8>>,
    ) {
        let expected: Option<BTreeSet<_>> =
            expected.map(|lasts| lasts.into_iter().map(|last| Ipv4Addr::new(10, 0, 1, last)).collect());
        assert_eq!(answer(&reply(flags, code, addresses)), Some((7, expected)));
    }

    #[test]
    fn what_is_no_answer_is_left_out() {
        assert_eq!(answer(&question(7, NAME).unwrap()), None);
        assert_eq!(answer(&[]), None);
        let whole = reply(PacketFlag::empty(), RCODE::NoError, &[11]);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length]), None, "{length} bytes of it");
        }
    }

    /// Two names, answered in the other order, and one that nobody answers.
    #[tokio::test]
    async fn answers_are_told_apart() {
        let (server, client) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        client.connect(server.local_addr().unwrap()).await.unwrap();
        let names = ["one", "two", "three"].map(str::to_owned);
        let ids: Vec<(u16, &String)> = (6..).zip(&names).collect();
        let mut found = BTreeMap::new();
        let serve = async {
            let mut buffer = [0; 512];
            for _ in &names {
                server.recv(&mut buffer).await.unwrap();
            }
            let to = client.local_addr().unwrap();
            let mut other = reply(PacketFlag::empty(), RCODE::NoError, &[12]);
            other[1] = 6;
            server.send_to(&reply(PacketFlag::empty(), RCODE::NoError, &[11]), to).await.unwrap();
            server.send_to(b"noise", to).await.unwrap();
            server.send_to(&other, to).await.unwrap();
        };
        let asking = timeout(Duration::from_millis(200), exchange(&client, &ids, &mut found));
        let (outcome, ()) = tokio::join!(asking, serve);
        assert!(outcome.is_err(), "one is waited for");
        let one = |last| Some([Ipv4Addr::new(10, 0, 1, last)].into());
        assert_eq!(found, [(6, one(12)), (7, one(11))].into());
    }
}
