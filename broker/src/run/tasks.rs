//! Tasks that run beside the ports for as long as the process lives.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::disk_watch;
use crate::{
    broker::Broker,
    disk_space, handler,
    limits::NAMESRV_TOPICS_PAUSE,
    namesrv::{Announcements, LEADER_BROKER_ID, ReadTopics, RegisteredRole, RegistrarInput},
    offset_commits::OffsetCommits,
    raft::Role,
    retention, schedule, scrub,
    stats::Stats,
};

/// Pause between looks for silent clients.
const SESSION_SCAN_INTERVAL: Duration = Duration::from_secs(10);

pub(super) fn background_tasks(broker: &Arc<Broker>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(OffsetCommits::run(Arc::clone(broker)));
    tasks.spawn(schedule::run(Arc::clone(broker)));
    tasks.spawn(retention::run(Arc::clone(broker)));
    tasks.spawn(disk_space::run(Arc::clone(broker)));
    tasks.spawn(scrub::run(Arc::clone(broker)));
    tasks.spawn(expire_sessions(Arc::clone(broker)));
    tasks.spawn(Stats::run(Arc::clone(broker)));
    tasks.spawn(disk_watch::run(Arc::clone(broker)));
    tasks.spawn(create_system_topics(Arc::clone(broker)));
    tasks
}

/// Each new leader makes sure that the system topics exist.
async fn create_system_topics(broker: Arc<Broker>) {
    let Some(consensus) = broker.consensus() else {
        return;
    };
    let mut role = consensus.role();
    loop {
        if role.wait_for(|role| role.serving).await.is_err() {
            return;
        }
        handler::topic::create_system_topics(&broker).await;
        if role.wait_for(|role| !role.serving).await.is_err() {
            return;
        }
        broker.offset_commits.keep_only(broker.serving_term());
    }
}

async fn expire_sessions(broker: Arc<Broker>) {
    loop {
        sleep(SESSION_SCAN_INTERVAL).await;
        let changed = broker.sessions.expire(Instant::now());
        handler::notify_changed(&broker, changed);
    }
}

/// What is registered at the name servers: changes with the role and with the topics. A role is
/// published at once; changes of topics are gathered for a moment after some were published.
pub(super) fn registration(broker: &Arc<Broker>) -> watch::Receiver<Option<RegistrarInput>> {
    let (sender, receiver) = watch::channel(None);
    let broker = Arc::clone(broker);
    tokio::spawn(async move {
        let Some(consensus) = broker.consensus() else {
            return;
        };
        let mut role = consensus.role();
        let mut metadata = broker.machine.metadata_changes();
        let reader = Arc::clone(&broker);
        let read: ReadTopics = Arc::new(move || handler::topic::topics_wrapper(&reader));
        let mut announcements = Announcements::new(read, 0);
        let mut published: Option<(RegisteredRole, u64)> = None;
        loop {
            metadata.borrow_and_update();
            note_topics(&broker, &mut announcements);
            let current = registered_role(&broker, &role.borrow_and_update());
            // Unknown to itself and the others, a node is not registered.
            if let Some(current) = current {
                let now = Some((current.clone(), announcements.version()));
                if published != now {
                    let topics = announcements.publish(current.role_epoch);
                    if published.is_none_or(|(role, _)| role != current) {
                        // Every name server needs all topics.
                        topics.prepare();
                    }
                    let role = current;
                    if sender.send(Some(RegistrarInput { role, topics })).is_err() {
                        return;
                    }
                    published = now;
                }
            }
            let topics_changed = async {
                sleep(NAMESRV_TOPICS_PAUSE).await;
                metadata.changed().await
            };
            let ended = tokio::select! {
                biased;
                changed = role.changed() => changed.is_err(),
                changed = topics_changed => changed.is_err(),
            };
            if ended {
                return;
            }
        }
    });
    receiver
}

fn registered_role(broker: &Broker, role: &Role) -> Option<RegisteredRole> {
    let config = &broker.config;
    (role.serving || role.leader.is_some()).then(|| RegisteredRole {
        broker_id: if role.serving {
            LEADER_BROKER_ID
        } else {
            config.raft.self_id
        },
        broker_address: if role.serving {
            config.leader_address()
        } else {
            config.broker_address()
        },
        address_is_shared: role.serving && config.leader_service_address.is_some(),
        role_epoch: role.term,
    })
}

/// Notes what changed since the last look. A topic that is gone cannot be told by itself.
fn note_topics(broker: &Broker, announcements: &mut Announcements) {
    let before = announcements.version();
    let (newest, names) = broker.machine.topics_changed_after(before);
    if newest == before {
        return;
    }
    let put = names.and_then(|names| handler::topic::registered_configs(broker, &names));
    announcements.note(newest, put);
}
