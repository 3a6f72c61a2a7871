//! A network in memory: connections between hosts, by a clock that the simulation moves.
//!
//! It behaves as TCP does: bytes of a connection arrive in order, later when some are lost on the way
//! or the link is cut for a while, and never in part. A connection breaks when its other end is gone,
//! which only what arrives there finds out. Whatever is random comes from one seed.

mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;

use raftmq::net::Net;

use self::stream::HostNet;
use super::random::Random;

/// Number of a host; its address is 10.0.0.`number`.
pub type HostId = u8;

/// Bytes that one direction of a connection holds before its writer waits.
const WINDOW_BYTES: usize = 1 << 20;
/// How much later a lost segment arrives: Linux retransmits after 200 ms at the earliest. Unit: ms.
const RETRANSMIT_MS: u64 = 200;
/// After how many of them a connection is given up: a minute.
const RETRANSMITS_MAX: u32 = 300;
/// First port that `connect` gives to its own end.
const EPHEMERAL_PORT: u16 = 40_000;

/// How the way from one host to another is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Nothing passes.
    pub cut: bool,
    /// Shortest and longest time that a segment takes. Unit: ms.
    pub latency_ms: (u64, u64),
    /// One of so many segments is lost and sent again; 0 = none.
    pub loses_one_in: u64,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            cut: false,
            latency_ms: (2, 3),
            loses_one_in: 0,
        }
    }
}

/// Address of a host.
pub fn address(host: HostId) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, host))
}

/// The network; clones share it.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    now_ms: u64,
    random: Random,
    /// Life of each host; a host that is down has none.
    lives: BTreeMap<HostId, u64>,
    lives_begun: u64,
    ways: BTreeMap<(HostId, HostId), Way>,
    listeners: BTreeMap<(HostId, u16), Acceptor>,
    connections: BTreeMap<u64, Connection>,
    connections_begun: u64,
    events: BTreeMap<(u64, u64), Event>,
    events_begun: u64,
    /// Until when the ports of a host refuse what asks for a connection. Unit: ms.
    refusing_until_ms: BTreeMap<HostId, u64>,
    /// Sum of everything that arrived, with the time: equal for equal runs.
    trace: u64,
    segments: u64,
}

#[derive(Debug, Default)]
struct Acceptor {
    life: u64,
    waiting: VecDeque<(u64, SocketAddr)>,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
}

/// One end of a connection, and what is on its way to it.
#[derive(Debug)]
struct End {
    host: HostId,
    life: u64,
    input: VecDeque<u8>,
    /// What is sent again until it arrives.
    held: VecDeque<Segment>,
    /// Bytes written by the other end that this one has not read.
    unread: usize,
    /// Nothing that is sent now may arrive earlier.
    arrives_ms: u64,
    state: State,
    /// The program has let go of it.
    dropped: bool,
    reader: Option<Waker>,
    /// Waits for room at the other end.
    writer: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The other end has not accepted yet.
    Connecting,
    Open,
    /// The other end sends no more.
    Ended,
    Refused,
    Reset,
}

#[derive(Debug)]
enum Event {
    /// Something reaches this end of a connection.
    Arrive(u64, usize, Segment),
    /// The request for a connection reaches a port; it comes from an address.
    Connect(u64, u16, SocketAddr),
    /// What one end of a connection could not be reached with is sent again.
    Retransmit(u64, usize, u32),
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    Accepted,
    Refused,
    End,
    Reset,
}

impl Network {
    /// A network without hosts.
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            now_ms: 0,
            random: Random::new(seed),
            lives: BTreeMap::new(),
            lives_begun: 0,
            ways: BTreeMap::new(),
            listeners: BTreeMap::new(),
            connections: BTreeMap::new(),
            connections_begun: 0,
            events: BTreeMap::new(),
            events_begun: 0,
            refusing_until_ms: BTreeMap::new(),
            trace: 0,
            segments: 0,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic ends the simulation")
    }

    /// Starts a host; what it opens ends with it.
    pub fn start(&self, host: HostId) -> Arc<dyn Net> {
        let mut inner = self.lock();
        inner.lives_begun += 1;
        let life = inner.lives_begun;
        inner.lives.insert(host, life);
        Arc::new(HostNet {
            network: self.clone(),
            host,
            life,
        })
    }

    /// Ends a host. `told`: its kernel lives on and resets its connections; otherwise the others hear
    /// nothing until the host is there again.
    pub fn stop(&self, host: HostId, told: bool) {
        let mut inner = self.lock();
        let Some(life) = inner.lives.remove(&host) else {
            return;
        };
        inner.listeners.retain(|_, acceptor| acceptor.life != life);
        if told {
            let ends: Vec<(u64, usize)> = inner.ends_of(life).collect();
            for (connection, end) in ends {
                inner.send(connection, 1 - end, Segment::Reset);
            }
        }
        inner.forget_dead();
    }

    /// Lets the ports of a host refuse new connections until then, though its process lives. Unit: ms.
    pub fn refuse_until(&self, host: HostId, until_ms: u64) {
        self.lock().refusing_until_ms.insert(host, until_ms);
    }

    /// Changes how the way from one host to another is, and returns how it was.
    pub fn set_way(&self, from: HostId, to: HostId, way: Way) -> Way {
        let mut inner = self.lock();
        inner.ways.insert((from, to), way).unwrap_or_default()
    }

    /// How the way from one host to another is.
    pub fn way(&self, from: HostId, to: HostId) -> Way {
        self.lock().way(from, to)
    }

    /// Moves the clock on and lets everything arrive that is due. Unit: ms.
    pub fn advance_to(&self, now_ms: u64) {
        let mut wakers = Vec::new();
        let mut inner = self.lock();
        inner.now_ms = now_ms;
        while let Some(entry) = inner.events.first_entry() {
            if entry.key().0 > now_ms {
                break;
            }
            let event = entry.remove();
            inner.happen(event, &mut wakers);
        }
        drop(inner);
        for waker in wakers {
            waker.wake();
        }
    }

    /// A number that is equal for equal runs, and the segments that have arrived.
    pub fn trace(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.trace, inner.segments)
    }
}

impl Inner {
    fn way(&self, from: HostId, to: HostId) -> Way {
        self.ways.get(&(from, to)).copied().unwrap_or_default()
    }

    fn ends_of(&self, life: u64) -> impl Iterator<Item = (u64, usize)> + '_ {
        self.connections.iter().flat_map(move |(id, connection)| {
            let ends = connection.ends.iter().enumerate();
            ends.filter(move |(_, end)| end.life == life)
                .map(move |(number, _)| (*id, number))
        })
    }

    /// Forgets connections that nobody holds any more.
    fn forget_dead(&mut self) {
        let lives = &self.lives;
        let held = |end: &End| !end.dropped && lives.get(&end.host) == Some(&end.life);
        self.connections
            .retain(|_, connection| connection.ends.iter().any(held));
    }

    fn is_alive(&self, host: HostId, life: u64) -> bool {
        self.lives.get(&host) == Some(&life)
    }

    fn event_at(&mut self, at_ms: u64, event: Event) {
        self.events_begun += 1;
        self.events.insert((at_ms, self.events_begun), event);
    }

    fn delay_ms(&mut self, way: Way) -> u64 {
        let (least, most) = way.latency_ms;
        let lost = way.loses_one_in > 0 && self.random.once_in(way.loses_one_in);
        let again = if lost { RETRANSMIT_MS } else { 0 };
        least + self.random.below(most - least + 1) + again
    }

    /// Sends a segment to one end of a connection.
    fn send(&mut self, connection: u64, to: usize, segment: Segment) {
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let way = self.way(known.ends[1 - to].host, known.ends[to].host);
        let at_ms = self.now_ms + self.delay_ms(way);
        let end = self.end(connection, to);
        end.arrives_ms = end.arrives_ms.max(at_ms);
        let at_ms = end.arrives_ms;
        self.event_at(at_ms, Event::Arrive(connection, to, segment));
    }

    fn happen(&mut self, event: Event, wakers: &mut Vec<Waker>) {
        match event {
            Event::Connect(connection, port, peer) => self.request(connection, port, peer, wakers),
            Event::Arrive(connection, to, segment) => self.arrive(connection, to, segment, wakers),
            Event::Retransmit(connection, to, tries) => {
                self.retransmit(connection, to, tries, wakers);
            }
        }
    }

    /// Whether nothing can reach one end of a connection at the moment.
    fn is_blocked(&self, connection: u64, to: usize) -> bool {
        let ends = &self.connections[&connection].ends;
        let (from, to) = (ends[1 - to].host, ends[to].host);
        self.way(from, to).cut || !self.lives.contains_key(&to)
    }

    fn request(&mut self, connection: u64, port: u16, peer: SocketAddr, wakers: &mut Vec<Waker>) {
        if !self.connections.contains_key(&connection) {
            return;
        }
        if self.is_blocked(connection, 1) {
            // The request is sent again; whoever asked gives up at some time.
            let again = Event::Connect(connection, port, peer);
            self.event_at(self.now_ms + RETRANSMIT_MS, again);
            return;
        }
        let target = self.connections[&connection].ends[1].host;
        let refuses = (self.refusing_until_ms.get(&target)).is_some_and(|at| *at > self.now_ms);
        let acceptor = self.listeners.get_mut(&(target, port));
        let Some(acceptor) = acceptor.filter(|_| !refuses) else {
            self.send(connection, 0, Segment::Refused);
            return;
        };
        acceptor.waiting.push_back((connection, peer));
        wakers.extend(acceptor.waker.take());
        let life = acceptor.life;
        let end = self.end(connection, 1);
        end.life = life;
        end.state = State::Open;
        self.send(connection, 0, Segment::Accepted);
    }

    /// The end of a connection that is known to be there.
    fn end(&mut self, connection: u64, number: usize) -> &mut End {
        let connection = self.connections.get_mut(&connection);
        &mut connection.expect("looked up before").ends[number]
    }

    fn arrive(&mut self, connection: u64, to: usize, segment: Segment, wakers: &mut Vec<Waker>) {
        if !self.connections.contains_key(&connection) {
            return;
        }
        if self.end(connection, to).held.is_empty() && !self.is_blocked(connection, to) {
            self.deliver(connection, to, segment, wakers);
            return;
        }
        // What was sent before has not arrived either.
        let held = &mut self.end(connection, to).held;
        held.push_back(segment);
        if held.len() == 1 {
            self.event_at(
                self.now_ms + RETRANSMIT_MS,
                Event::Retransmit(connection, to, 1),
            );
        }
    }

    fn retransmit(&mut self, connection: u64, to: usize, tries: u32, wakers: &mut Vec<Waker>) {
        if !self.connections.contains_key(&connection) {
            return;
        }
        if self.is_blocked(connection, to) {
            if tries < RETRANSMITS_MAX {
                let again = Event::Retransmit(connection, to, tries + 1);
                self.event_at(self.now_ms + RETRANSMIT_MS, again);
            } else {
                self.end(connection, to).held.clear();
                self.deliver(connection, 1 - to, Segment::Reset, wakers);
            }
            return;
        }
        for segment in std::mem::take(&mut self.end(connection, to).held) {
            if self.connections.contains_key(&connection) {
                self.deliver(connection, to, segment, wakers);
            }
        }
    }

    fn deliver(&mut self, connection: u64, to: usize, segment: Segment, wakers: &mut Vec<Waker>) {
        let end = &self.connections[&connection].ends[to];
        if end.dropped || !self.is_alive(end.host, end.life) {
            self.answer_for_nobody(connection, to, &segment);
            return;
        }
        self.note(connection, to, &segment);
        let end = self.end(connection, to);
        match segment {
            Segment::Bytes(bytes) => end.input.extend(bytes),
            Segment::Accepted => end.state = State::Open,
            Segment::Refused => end.state = State::Refused,
            Segment::End if end.state == State::Open => end.state = State::Ended,
            Segment::End => {}
            Segment::Reset => end.state = State::Reset,
        }
        wakers.extend(end.reader.take());
        wakers.extend(end.writer.take());
    }

    /// A segment has reached an end that no program holds any more.
    fn answer_for_nobody(&mut self, connection: u64, to: usize, segment: &Segment) {
        let sender = &self.connections[&connection].ends[1 - to];
        let sender_gone = sender.dropped || !self.is_alive(sender.host, sender.life);
        match segment {
            Segment::Bytes(_) | Segment::Accepted if !sender_gone => {
                self.send(connection, 1 - to, Segment::Reset);
            }
            _ => {}
        }
        if sender_gone {
            self.connections.remove(&connection);
        }
    }

    /// Takes an arrival into the trace.
    fn note(&mut self, connection: u64, to: usize, segment: &Segment) {
        self.segments += 1;
        let what = match segment {
            Segment::Bytes(bytes) => u64::from(crc32c::crc32c(bytes)) + 8,
            Segment::Accepted => 1,
            Segment::Refused => 2,
            Segment::End => 3,
            Segment::Reset => 4,
        };
        for number in [self.now_ms, connection, to as u64, what] {
            self.trace = Random::new(self.trace ^ number).number();
        }
    }
}
