//! Turns what is seen of the nodes, round by round, into the lines that a person wants to read.
//! Pure: time comes in as a number.

use super::probe::NodeStatus;

/// What was seen of one node in one round.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    pub(super) name: String,
    /// `None` while it runs, else how its process ended.
    pub(super) ended: Option<String>,
    pub(super) pid: Option<u32>,
    pub(super) status: Option<NodeStatus>,
}

/// Remembers the round before.
#[derive(Debug, Default)]
pub(super) struct Watch {
    nodes: Vec<Seen>,
    leader: Option<(String, u64)>,
    /// When a process ended that led, and its name. Unit: ms.
    leader_ended: Option<(u64, String)>,
    quorum_lost: bool,
}

#[derive(Debug)]
struct Seen {
    name: String,
    ended: bool,
    ready: bool,
}

impl Watch {
    /// Takes in a round at `now_ms` and returns what is new.
    pub(super) fn observe(&mut self, now_ms: u64, sights: &[Sight]) -> Vec<String> {
        let mut notices = Vec::new();
        let first = self.nodes.is_empty();
        for sight in sights {
            let ready = sight.status.as_ref().is_some_and(|status| status.ready);
            let Some(seen) = self.nodes.iter_mut().find(|seen| seen.name == sight.name) else {
                self.nodes.push(Seen {
                    name: sight.name.clone(),
                    ended: sight.ended.is_some(),
                    ready,
                });
                continue;
            };
            match (&sight.ended, seen.ended) {
                (Some(reason), false) => {
                    notices.push(format!("{} ended: {reason}", sight.name));
                    if self
                        .leader
                        .as_ref()
                        .is_some_and(|(name, _)| *name == sight.name)
                    {
                        self.leader_ended = Some((now_ms, sight.name.clone()));
                    }
                }
                (None, true) => {
                    let pid = sight.pid.unwrap_or_default();
                    notices.push(format!("{} started again, pid {pid}", sight.name));
                }
                (Some(_), true) | (None, false) => {}
            }
            if ready && !seen.ready && !first {
                notices.push(format!("{} is ready as {}", sight.name, role_of(sight)));
            }
            seen.ended = sight.ended.is_some();
            seen.ready = ready;
        }
        notices.extend(self.quorum_change(sights));
        notices.extend(self.leader_change(now_ms, sights));
        notices
    }

    /// The node that leads, as far as was seen.
    pub(super) fn leader(&self) -> Option<&str> {
        self.leader.as_ref().map(|(name, _)| name.as_str())
    }

    fn quorum_change(&mut self, sights: &[Sight]) -> Option<String> {
        let running = sights.iter().filter(|sight| sight.ended.is_none()).count();
        let lost = running * 2 <= sights.len();
        if lost == self.quorum_lost {
            return None;
        }
        self.quorum_lost = lost;
        let all = sights.len();
        lost.then(|| format!("no majority: {running} of {all} brokers run, sends wait or fail"))
    }

    /// Two nodes may say that they lead for a moment; the higher term is right.
    fn leader_change(&mut self, now_ms: u64, sights: &[Sight]) -> Option<String> {
        let leaders = sights.iter().filter_map(|sight| {
            let status = sight.status.as_ref().filter(|status| status.is_leader())?;
            Some((status.term, &sight.name))
        });
        let (term, name) = leaders.max()?;
        let old = self.leader.replace((name.clone(), term));
        let (old_name, old_term) = old?;
        if term < old_term {
            self.leader = Some((old_name, old_term));
            return None;
        }
        if term == old_term && *name == old_name {
            return None;
        }
        let after = match self.leader_ended.take() {
            Some((ended_ms, ended)) => {
                format!(
                    ", seen {} ms after {ended} ended",
                    now_ms.saturating_sub(ended_ms)
                )
            }
            None => String::new(),
        };
        Some(format!("{name} leads now, term {term}{after}"))
    }
}

fn role_of(sight: &Sight) -> String {
    let status = sight.status.as_ref();
    status.map_or_else(String::new, |status| status.role.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(name: &str, role: Option<(&str, u64)>) -> Sight {
        Sight {
            name: name.to_owned(),
            ended: role.is_none().then(|| "signal: 9 (SIGKILL)".to_owned()),
            pid: Some(7),
            status: role.map(|(role, term)| NodeStatus {
                role: role.to_owned(),
                term,
                ready: true,
                not_ready_reason: None,
            }),
        }
    }

    fn round(
        one: Option<(&str, u64)>,
        two: Option<(&str, u64)>,
        three: Option<(&str, u64)>,
    ) -> Vec<Sight> {
        vec![sight("n1", one), sight("n2", two), sight("n3", three)]
    }

    const LEADER: Option<(&str, u64)> = Some(("LEADER", 1));
    const FOLLOWER: Option<(&str, u64)> = Some(("FOLLOWER", 1));

    #[test]
    fn a_quiet_cluster_gives_no_lines() {
        let mut watch = Watch::default();
        for now_ms in 0..3 {
            let notices = watch.observe(now_ms, &round(LEADER, FOLLOWER, FOLLOWER));
            assert_eq!(notices, Vec::<String>::new());
        }
        assert_eq!(watch.leader(), Some("n1"));
    }

    #[test]
    fn a_killed_leader_and_its_successor_are_told() {
        let mut watch = Watch::default();
        watch.observe(0, &round(LEADER, FOLLOWER, FOLLOWER));
        let ended = watch.observe(100, &round(None, FOLLOWER, FOLLOWER));
        assert_eq!(ended, ["n1 ended: signal: 9 (SIGKILL)"]);
        let new = Some(("LEADER", 2));
        let elected = watch.observe(500, &round(None, new, FOLLOWER));
        assert_eq!(
            elected,
            ["n2 leads now, term 2, seen 400 ms after n1 ended"]
        );
        let back = watch.observe(900, &round(FOLLOWER, new, FOLLOWER));
        assert_eq!(back, ["n1 started again, pid 7", "n1 is ready as follower"]);
    }

    #[test]
    fn the_higher_term_leads_and_an_old_leader_is_not_believed_again() {
        let mut watch = Watch::default();
        watch.observe(0, &round(LEADER, FOLLOWER, FOLLOWER));
        let new = Some(("LEADER", 2));
        assert_eq!(
            watch.observe(1, &round(LEADER, new, FOLLOWER)),
            ["n2 leads now, term 2"]
        );
        assert_eq!(watch.observe(2, &round(LEADER, None, FOLLOWER)).len(), 1);
        assert_eq!(watch.leader(), Some("n2"));
    }

    #[test]
    fn a_lost_majority_is_told_once() {
        let mut watch = Watch::default();
        watch.observe(0, &round(LEADER, FOLLOWER, FOLLOWER));
        let lost = watch.observe(1, &round(LEADER, None, None));
        assert_eq!(
            lost.last().unwrap(),
            "no majority: 1 of 3 brokers run, sends wait or fail"
        );
        assert_eq!(
            watch.observe(2, &round(LEADER, None, None)),
            Vec::<String>::new()
        );
    }
}
