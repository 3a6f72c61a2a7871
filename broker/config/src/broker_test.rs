//! Tests of the broker configuration.

use super::*;

fn surroundings() -> Surroundings {
    Surroundings {
        home: PathBuf::from("/home/u"),
        host_name: "machine".to_owned(),
        local_ip: "10.0.0.7".to_owned(),
    }
}

fn parse(text: &str) -> Result<(BrokerConfig, Vec<Warning>), ConfigError> {
    BrokerConfig::parse_in(text, "broker.conf", &surroundings())
}

fn problem(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_a_group_of_one() {
    let (config, warnings) = parse("").unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.broker_name, "machine");
    assert_eq!(config.broker_address(), "10.0.0.7:10911");
    assert_eq!(
        config.store_commitlog,
        PathBuf::from("/home/u/store/commitlog")
    );
    assert_eq!(config.flush, FlushDiskType::SyncFlush);
    assert_eq!(config.raft.group, "machine");
    assert_eq!(config.raft.self_peer().unwrap().address, "10.0.0.7:40911");
    assert_eq!(config.message_delay_levels.len(), 18);
}

#[test]
fn a_broker_advertises_an_address_or_a_name_and_nothing_else() {
    for address in ["10.0.0.7", "broker-0.brokers", "::1", "fe80::1%eth0", "a_b"] {
        let (config, _) = parse(&format!("brokerIP1={address}")).unwrap();
        assert_eq!(config.broker_ip1, address);
        // The line that the configuration shows for the group of one reads back.
        let summary = parse(&config.summary()).unwrap().0;
        assert_eq!(summary, config);
    }
    for address in ["10.0.0.7:10911", "a b", "a;b:1", "[::1]", "a/b", "::1%"] {
        let text = problem(&format!("brokerIP1={address}"));
        assert!(
            text.starts_with("broker.conf:1: brokerIP1 must be"),
            "{text}"
        );
    }
}

#[test]
fn a_list_that_is_emptied_is_shown_so_and_segments_need_an_hour_to_go() {
    let (config, _) = parse("configBlackList=").unwrap();
    assert!(config.config_black_list.is_empty());
    assert_eq!(parse(&config.summary()).unwrap().0, config);
    for value in ["", ";"] {
        let text = problem(&format!("deleteWhen={value}"));
        assert!(text.contains("deleteWhen must be hours"), "{text}");
    }
}

#[test]
fn a_dledger_file_of_upstream_is_understood() {
    let text = "brokerClusterName = RaftCluster\nbrokerName=RaftNode00\nlistenPort=30911\n\
        namesrvAddr=127.0.0.1:9876\nstorePathRootDir=/tmp/rmqstore/node00\n\
        storePathCommitLog=/tmp/rmqstore/node00/commitlog\nenableDLegerCommitLog=true\n\
        dLegerGroup=RaftNode00\n\
        dLegerPeers=n0-127.0.0.1:40911;n1-127.0.0.1:40912;n2-127.0.0.1:40913\n\
        ## must be unique\ndLegerSelfId=n1\nsendMessageThreadPoolNums=16\n";
    let (config, warnings) = parse(text).unwrap();
    assert_eq!(
        (config.raft.self_id, config.raft.self_peer().unwrap().port()),
        (2, 40912)
    );
    assert_eq!(
        config
            .raft
            .peers
            .iter()
            .map(|peer| peer.id)
            .collect::<Vec<_>>(),
        [1, 2, 3]
    );
    let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "broker.conf:12: key 'sendMessageThreadPoolNums' has no effect here: requests are not \
          queued per thread pool"
        ]
    );
}

#[test]
fn an_unknown_key_is_an_error_that_names_its_neighbour() {
    assert_eq!(
        problem("\nlistnPort=1"),
        "broker.conf:2: unknown key 'listnPort' (did you mean 'listenPort'?)"
    );
}

#[test]
fn a_bad_value_is_an_error_that_tells_the_legal_ones() {
    let cases = [
        (
            "flushDiskType=SYNC",
            "flushDiskType must be SYNC_FLUSH or ASYNC_FLUSH, not 'SYNC'",
        ),
        (
            "listenPort=70000",
            "listenPort must be a number from 0 to 65535, not '70000'",
        ),
        ("listenPort=0", "listenPort must be 1 to 65535, not 0"),
        (
            "slaveReadEnable=yes",
            "slaveReadEnable must be true or false, not 'yes'",
        ),
        (
            "brokerPermission=5",
            "brokerPermission must be 2 (write), 4 (read) or 6 (both), not '5'",
        ),
        (
            "namesrvAddr=a:1;b",
            "namesrvAddr must be 'host:port;...', not 'b'",
        ),
        ("brokerName=", "brokerName must be a text, not ''"),
        (
            "aclEnable=true",
            "aclEnable=true cannot be served: access control is not available in this version",
        ),
        (
            "httpPort=10911",
            "httpPort 10911 is the port of listenPort too",
        ),
        (
            "raftBindAddress=here",
            "raftBindAddress must be an IP address, not 'here'",
        ),
        (
            "raftFormGroup=me",
            "raftFormGroup must be peers or admin, not 'me'",
        ),
        (
            "leaderServiceAddress=10.0.0.1",
            "leaderServiceAddress must be 'host:port', not '10.0.0.1'",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(
            problem(text),
            format!("broker.conf:1: {expected}"),
            "{text}"
        );
    }
}

#[test]
fn all_problems_of_a_file_are_told_at_once() {
    let text = "listenPort=x\nbrokerRole=SLAVE\n";
    assert_eq!(problem(text).lines().count(), 2);
}

#[test]
fn a_later_file_wins_over_an_earlier_one_and_arguments_over_both() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let base = file(
        "base.conf",
        "brokerName=base\nlistenPort=1001\nbrokerIP1=a\n",
    );
    let pod = file("pod.conf", "listenPort=1002\nbrokerIP1=b\n");
    let arguments = |texts: &[&str]| {
        texts
            .iter()
            .map(|&text| text.to_owned())
            .collect::<Vec<_>>()
    };
    let files = [base, pod.clone()];
    let (config, warnings) =
        BrokerConfig::load(&files, &arguments(&["brokerIP1=c", "brokerIP1=d"])).unwrap();
    assert_eq!(config.broker_name, "base");
    assert_eq!(config.broker_address(), "d:1002");
    assert_eq!(warnings, []);

    let bad = arguments(&["listenPort=x", "listnPort=1"]);
    let problems = BrokerConfig::load(&files, &bad).unwrap_err().to_string();
    assert_eq!(
        problems,
        "--set listenPort=x: listenPort must be a number from 0 to 65535, not 'x'\n\
         --set listnPort=1: unknown key 'listnPort' (did you mean 'listenPort'?)"
    );
    file("pod.conf", "httpPort=1001");
    let taken = BrokerConfig::load(&files, &[]).unwrap_err().to_string();
    let place = pod.display();
    assert_eq!(
        taken,
        format!("{place}:1: httpPort 1001 is the port of listenPort too")
    );
    let missing = arguments(&["enableDLegerCommitLog=true"]);
    let problems = BrokerConfig::load(&files, &missing)
        .unwrap_err()
        .to_string();
    assert!(
        problems.contains("base.conf, ")
            && problems.contains("pod.conf: enableDLegerCommitLog=true needs dLegerPeers"),
        "{problems}"
    );
}

#[test]
fn the_leader_may_have_an_address_of_its_own() {
    let (config, _) = parse("leaderServiceAddress=svc:10911").unwrap();
    assert_eq!(config.leader_address(), "svc:10911");
    assert_eq!(config.broker_address(), "10.0.0.7:10911");
    let (config, _) = parse("").unwrap();
    assert_eq!(config.leader_address(), "10.0.0.7:10911");
}

#[test]
fn a_group_needs_itself_among_unique_peers() {
    let group = "enableDLegerCommitLog=true\n";
    assert_eq!(
        problem(group),
        "broker.conf: enableDLegerCommitLog=true needs dLegerPeers\n\
         broker.conf: enableDLegerCommitLog=true needs dLegerSelfId"
    );
    let peers = format!("{group}dLegerPeers=n0-a:1;n1-b:1\n");
    assert_eq!(
        problem(&format!("{peers}dLegerSelfId=n2")),
        "broker.conf:3: dLegerSelfId 'n2' is not in dLegerPeers"
    );
    let twice = format!("{group}dLegerPeers=n0-a:1;n0-a:1\ndLegerSelfId=n0");
    assert_eq!(
        problem(&twice),
        "broker.conf:2: dLegerPeers names 'n0' twice\nbroker.conf:2: dLegerPeers names a:1 twice"
    );
}

#[test]
fn election_timing_must_leave_room_for_a_lost_heartbeat() {
    assert_eq!(
        problem("raftElectionTimeoutMinMs=400"),
        "broker.conf:1: raftElectionTimeoutMinMs 400 must be less than \
         raftElectionTimeoutMaxMs 375"
    );
    assert_eq!(
        problem("raftHeartbeatIntervalMs=125"),
        "broker.conf:1: raftHeartbeatIntervalMs 125 must be less than half of \
         raftElectionTimeoutMinMs 225"
    );
}

#[test]
fn a_listen_port_without_a_raft_port_above_it_needs_the_key() {
    assert_eq!(
        problem("listenPort=50000"),
        "broker.conf:1: raftPort must be set, as listenPort 50000 + 30000 is no port"
    );
    let (config, _) = parse("listenPort=50000\nraftPort=50001").unwrap();
    assert_eq!(config.raft.self_peer().unwrap().port(), 50001);
}

#[test]
fn other_listeners_follow_the_bind_address() {
    let (config, _) = parse("bindAddress=127.0.0.1\nhttpBindAddress=::1").unwrap();
    assert_eq!(config.raft.bind_address.to_string(), "127.0.0.1");
    assert_eq!(config.http_bind_address.to_string(), "::1");
}

#[test]
fn the_summary_shows_resolved_defaults_and_reads_back() {
    let text = "enableDLegerCommitLog=true\ndLegerPeers=n0-a-b:1;n1-[::1]:2\ndLegerSelfId=n0\n\
        embeddedNamesrvPort=9876\ndeleteWhen=04;16";
    let (config, _) = parse(text).unwrap();
    let summary = config.summary();
    assert!(
        summary.contains("storePathCommitLog=/home/u/store/commitlog\n"),
        "{summary}"
    );
    assert!(summary.contains("deleteWhen=04;16\n"), "{summary}");
    let (again, _) = parse(&summary).unwrap();
    assert_eq!(config, again);
}
