//! The one table of configuration keys: every key of RocketMQ 5.5.0's broker and name server, and
//! our own. A key is honoured (a row that names its field), refused (it asks for something whose
//! absence a user must not overlook) or without effect (one warning line says why).

use super::field::Field;
use super::properties::escape;
use super::{BrokerConfig, NamesrvConfig};

/// A key that is honoured, and the field it sets.
pub(super) struct Row<C> {
    name: &'static str,
    pub(super) field: fn(&mut C) -> &mut dyn Field,
}

/// A value that keeps the process from starting.
struct Refused {
    name: &'static str,
    value: &'static str,
    why: &'static str,
}

/// Keys, separated by white space, that are accepted and do nothing.
struct NoEffect {
    why: &'static str,
    names: &'static str,
}

/// All keys of one kind of file.
pub(super) struct Table<C: 'static> {
    honoured: &'static [Row<C>],
    refused: &'static [Refused],
    no_effect: &'static [&'static [NoEffect]],
}

impl<C> Table<C> {
    pub(super) fn honoured(&self, key: &str) -> Option<&'static Row<C>> {
        self.honoured.iter().find(|row| row.name == key)
    }

    /// Why `key=value` cannot be served.
    pub(super) fn refusal(&self, key: &str, value: &str) -> Option<&'static str> {
        let fits = |row: &&Refused| row.name == key && row.value.eq_ignore_ascii_case(value);
        self.refused.iter().find(fits).map(|row| row.why)
    }

    /// Why `key` does nothing, when it is one that does nothing.
    pub(super) fn no_effect(&self, key: &str) -> Option<&'static str> {
        if self.refused.iter().any(|row| row.name == key) {
            return Some("it is off in this version, which is what the value asks for");
        }
        let mut groups = self.no_effect.iter().copied().flatten();
        groups
            .find(|group| group.names.split_whitespace().any(|name| name == key))
            .map(|group| group.why)
    }

    /// Name and value of every honoured key, in table order.
    pub(super) fn show(&self, config: &mut C) -> Vec<(&'static str, String)> {
        self.honoured
            .iter()
            .map(|row| (row.name, (row.field)(config).show()))
            .collect()
    }

    /// The known key that `key` is most likely meant to be.
    pub(super) fn nearest(&self, key: &str) -> Option<&'static str> {
        let wanted = key.to_ascii_lowercase();
        let (length, most) = (wanted.chars().count(), (key.len() / 4).max(1));
        let distance = |name: &&'static str| edit_distance(&wanted, &name.to_ascii_lowercase());
        self.names()
            // Each character more or less is a change of its own.
            .filter(|name| name.len().abs_diff(length) <= most)
            .map(|name| (distance(&name), name))
            .filter(|(far, _)| *far <= most)
            .min()
            .map(|(_, name)| name)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        let honoured = self.honoured.iter().map(|row| row.name);
        let refused = self.refused.iter().map(|row| row.name);
        let groups = self.no_effect.iter().copied().flatten();
        honoured
            .chain(refused)
            .chain(groups.flat_map(|group| group.names.split_whitespace()))
    }
}

/// The key whose empty value is another than its default.
const MAY_BE_EMPTY: &str = "configBlackList";

/// Entries as the lines of a properties file; an empty value means that the key is not set.
pub(super) fn text_of(entries: &[(&'static str, String)]) -> String {
    let set = entries
        .iter()
        .filter(|(key, value)| !value.is_empty() || *key == MAY_BE_EMPTY);
    set.map(|(key, value)| format!("{key}={}\n", escape(value)))
        .collect()
}

/// Insertions, deletions and replacements that turn one key into the other.
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, left) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, right) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// Shorthand for a row of the tables below.
macro_rules! row {
    ($name:literal, $($field:ident).+) => {
        Row { name: $name, field: |config| &mut config.$($field).+ }
    };
}

/// `broker.conf`.
pub(super) static BROKER: Table<BrokerConfig> = Table {
    honoured: &[
        row!("brokerClusterName", cluster_name),
        row!("brokerName", broker_name),
        row!("brokerId", broker_id),
        row!("listenPort", listen_port),
        row!("bindAddress", bind_address),
        row!("brokerIP1", broker_ip1),
        row!("leaderServiceAddress", leader_service_address),
        row!("namesrvAddr", namesrv_addrs),
        row!("storePathRootDir", store_root),
        row!("storePathCommitLog", store_commitlog),
        row!("enableDLegerCommitLog", enable_dledger_commit_log),
        row!("dLegerGroup", raft.group),
        row!("dLegerPeers", raft.peers),
        row!("dLegerSelfId", raft.self_name),
        row!("raftPort", raft_port),
        row!("raftFormGroup", raft.formation),
        row!("raftBindAddress", raft.bind_address),
        row!("raftHeartbeatIntervalMs", raft.heartbeat_ms),
        row!("raftElectionTimeoutMinMs", raft.election_min_ms),
        row!("raftElectionTimeoutMaxMs", raft.election_max_ms),
        row!("brokerRole", broker_role),
        row!("flushDiskType", flush),
        row!("flushIntervalCommitLog", flush_interval_commit_log_ms),
        row!("mappedFileSizeCommitLog", segment_bytes),
        row!("commitLogPreallocateBytes", preallocate_bytes),
        row!("commitLogTailBytes", tail_bytes),
        row!("deleteWhen", delete_when_hours),
        row!("fileReservedTime", file_reserved_hours),
        row!("diskMaxUsedSpaceRatio", disk_max_used_ratio),
        row!("diskSpaceWarningLevelRatio", disk_warning_ratio),
        row!("diskSpaceCleanForciblyRatio", disk_clean_forcibly_ratio),
        row!("cleanFileForciblyEnable", clean_file_forcibly),
        row!("autoCreateTopicEnable", auto_create_topic),
        row!("autoCreateSubscriptionGroup", auto_create_group),
        row!("defaultTopicQueueNums", default_topic_queue_nums),
        row!("brokerPermission", broker_permission),
        row!("maxMessageSize", max_message_size),
        row!("longPollingEnable", long_polling_enable),
        row!("shortPollingTimeMills", short_polling_time_mills),
        row!("messageDelayLevel", message_delay_levels),
        row!("traceTopicEnable", trace_topic_enable),
        row!("msgTraceTopicName", trace_topic_name),
        row!("slaveReadEnable", slave_read_enable),
        row!("registerNameServerPeriod", register_name_server_period_ms),
        row!(
            "maxTransferCountOnMessageInMemory",
            max_transfer_count_on_message_in_memory
        ),
        row!(
            "maxTransferBytesOnMessageInMemory",
            max_transfer_bytes_on_message_in_memory
        ),
        row!(
            "notifyConsumerIdsChangedEnable",
            notify_consumer_ids_changed_enable
        ),
        row!("configBlackList", config_black_list),
        row!("httpPort", http_port),
        row!("httpBindAddress", http_bind_address),
        row!("embeddedNamesrvPort", namesrv_port),
        row!("memoryBudgetBytes", memory_budget_bytes),
    ],
    refused: &[
        Refused {
            name: "aclEnable",
            value: "true",
            why: "access control is not available in this version",
        },
        Refused {
            name: "authenticationEnabled",
            value: "true",
            why: "authentication is not available in this version",
        },
        Refused {
            name: "authorizationEnabled",
            value: "true",
            why: "authorization is not available in this version",
        },
        Refused {
            name: "enableControllerMode",
            value: "true",
            why: "the Raft group elects its leader itself; use enableDLegerCommitLog",
        },
        Refused {
            name: "enableSlaveActingMaster",
            value: "true",
            why: "a new leader is elected instead",
        },
        Refused {
            name: "useTLS",
            value: "true",
            why: "TLS is not available in this version",
        },
    ],
    no_effect: &[BROKER_NO_EFFECT, NETWORK_NO_EFFECT],
};

/// `namesrv.conf`.
pub(super) static NAMESRV: Table<NamesrvConfig> = Table {
    honoured: &[
        row!("listenPort", listen_port),
        row!("bindAddress", bind_address),
        row!("kvConfigPath", kv_config_path),
        row!(
            "scanNotActiveBrokerInterval",
            scan_not_active_broker_interval_ms
        ),
        row!("orderMessageEnable", order_message_enable),
        row!(
            "returnOrderTopicConfigToBroker",
            return_order_topic_config_to_broker
        ),
        row!("enableAllTopicList", enable_all_topic_list),
        row!("enableTopicList", enable_topic_list),
        row!(
            "deleteTopicWithBrokerRegistration",
            delete_topic_with_broker_registration
        ),
        row!("needWaitForService", need_wait_for_service),
        row!("waitSecondsForService", wait_seconds_for_service),
        row!("serverChannelMaxIdleTimeSeconds", channel_max_idle_seconds),
        row!("configBlackList", config_black_list),
        row!("memoryBudgetBytes", memory_budget_bytes),
    ],
    refused: &[
        Refused {
            name: "enableControllerInNamesrv",
            value: "true",
            why: "brokers elect their leader themselves",
        },
        Refused {
            name: "supportActingMaster",
            value: "true",
            why: "a new leader is elected instead",
        },
        Refused {
            name: "useTLS",
            value: "true",
            why: "TLS is not available in this version",
        },
    ],
    no_effect: &[NAMESRV_NO_EFFECT, NETWORK_NO_EFFECT],
};

const THREADS: &str = "requests are not queued per thread pool";
const PLACE: &str = "the process has no installation folder; the file is given with -c";

const NAMESRV_NO_EFFECT: &[NoEffect] = &[
    NoEffect { why: THREADS, names: "clientRequestThreadPoolNums clientRequestThreadPoolQueueCapacity
        defaultThreadPoolNums defaultThreadPoolQueueCapacity unRegisterBrokerQueueCapacity" },
    NoEffect { why: "the registered leader is always the lowest broker id", names: "notifyMinBrokerIdChanged" },
    NoEffect { why: PLACE, names: "rocketmqHome configStorePath productEnvName clusterTest" },
    NoEffect { why: "there is no controller", names: "controllerType controllerDLegerGroup
        controllerDLegerPeers controllerDLegerSelfId controllerStorePath mappedFileSize
        controllerThreadPoolNums controllerRequestThreadPoolQueueCapacity
        enableElectUncleanMaster electMasterMaxRetryCount notifyBrokerRoleChanged processReadEvent
        scanInactiveMasterInterval jraftConfig electionTimeoutMs snapshotIntervalSecs groupId serverId
        initConf controllerRPCAddr" },
];

/// Keys of the network layer, the same in both files.
const NETWORK_NO_EFFECT: &[NoEffect] = &[
    NoEffect {
        why: "the runtime sizes its threads and buffers itself",
        names: "serverWorkerThreads
        serverCallbackExecutorThreads serverSelectorThreads serverOnewaySemaphoreValue
        serverAsyncSemaphoreValue serverSocketSndBufSize serverSocketRcvBufSize serverSocketBacklog
        serverPooledByteBufAllocatorEnable serverNettyWorkerGroupEnable useEpollNativeSelector
        writeBufferHighWaterMark writeBufferLowWaterMark clientWorkerThreads
        clientCallbackExecutorThreads clientOnewaySemaphoreValue clientAsyncSemaphoreValue
        clientPooledByteBufAllocatorEnable clientSocketSndBufSize clientSocketRcvBufSize
        disableCallbackExecutor disableNettyWorkerGroup",
    },
    NoEffect {
        why: "connections are supervised with fixed times",
        names: "connectTimeoutMillis
        serverChannelMaxIdleTimeSeconds channelNotActiveInterval clientChannelMaxIdleTimeSeconds
        clientCloseSocketIfTimeout maxReconnectIntervalTimeSeconds scanAvailableNameSrv
        enableReconnectForGoAway socksProxyConfig",
    },
    NoEffect {
        why: "a stopping process hands its leadership over and closes its connections",
        names: "enableShutdownGracefully shutdownWaitTimeSeconds",
    },
];

const BROKER_NO_EFFECT: &[NoEffect] = &[
    NoEffect { why: THREADS, names: "sendMessageThreadPoolNums putMessageFutureThreadPoolNums
        pullMessageThreadPoolNums litePullMessageThreadPoolNums ackMessageThreadPoolNums
        processReplyMessageThreadPoolNums queryMessageThreadPoolNums adminBrokerThreadPoolNums
        clientManageThreadPoolNums consumerManageThreadPoolNums loadBalanceProcessorThreadPoolNums
        heartbeatThreadPoolNums recoverThreadPoolNums endTransactionThreadPoolNums
        sendThreadPoolQueueCapacity putThreadPoolQueueCapacity pullThreadPoolQueueCapacity
        litePullThreadPoolQueueCapacity ackThreadPoolQueueCapacity replyThreadPoolQueueCapacity
        queryThreadPoolQueueCapacity clientManagerThreadPoolQueueCapacity
        consumerManagerThreadPoolQueueCapacity heartbeatThreadPoolQueueCapacity
        endTransactionPoolQueueCapacity adminBrokerThreadPoolQueueCapacity
        loadBalanceThreadPoolQueueCapacity enableFastChannelEventProcess asyncSendEnable
        transactionCheckRocksdbCoreThreads transactionCheckRocksdbMaxThreads
        transactionCheckRocksdbQueueCapacity litePullMessageEnable" },
    NoEffect { why: "a full broker holds requests within fixed byte limits instead of timing queues",
        names: "brokerFastFailureEnable waitTimeMillsInSendQueue waitTimeMillsInPullQueue
        waitTimeMillsInLitePullQueue waitTimeMillsInHeartbeatQueue waitTimeMillsInTransactionQueue
        waitTimeMillsInAckQueue waitTimeMillsInAdminBrokerQueue osPageCacheBusyTimeOutMills
        putMessageTimeout maxAsyncPutMessageRequests highSpeedMode enableNetWorkFlowControl
        startAcceptSendRequestTimeStamp" },
    NoEffect { why: "the log is written in batches by one flush thread and read without mmap",
        names: "transientStorePoolEnable transientStorePoolSize fastFailIfNoBufferInStorePool
        useReentrantLockWhenPutMessage useABSLock spinLockCollisionRetreatOptimalDegree
        topicQueueLockNum commitIntervalCommitLog commitCommitLogLeastPages
        commitCommitLogThoroughInterval flushCommitLogTimed flushCommitLogLeastPages
        flushCommitLogThoroughInterval flushLeastPagesWhenWarmMapedFile warmMapedFileEnable
        flushIntervalConsumeQueue flushConsumeQueueLeastPages flushConsumeQueueThoroughInterval
        mappedFileSwapEnable commitLogForceSwapMapInterval commitLogSwapMapInterval
        commitLogSwapMapReserveFileNum logicQueueForceSwapMapInterval logicQueueSwapMapInterval
        logicQueueSwapMapReserveFileNum cleanSwapedMapInterval writeWithoutMmap wakeCommitWhenPutMessage
        wakeFlushWhenPutMessage sharedByteBufferNum transferMsgByHeap accessMessageInMemoryMaxRatio
        accessMessageInMemoryHotRatio maxTransferBytesOnMessageInDisk maxTransferCountOnMessageInDisk
        enableRunningFlagsInFlush syncFlushTimeout dataReadAheadEnable debugLockEnable
        travelCqFileNumWhenGetMessage pullBatchMaxMessageCount maxFilterMessageSize" },
    NoEffect { why: "queues and keys are derived from the log in files of their own",
        names: "mappedFileSizeConsumeQueue mappedFileSizeConsumeQueueExt enableConsumeQueueExt
        mapperFileSizeBatchConsumeQueue bitMapLengthConsumeQueueExt maxHashSlotNum maxIndexNum
        maxMsgsNumBatch defaultQueryMaxNum messageIndexEnable messageIndexSafe indexFileReadEnable
        indexFileWriteEnable indexRocksDBEnable putMsgIndexHightWater maxConsumeQueueScan
        sampleSteps sampleCountThreshold searchBcqByCacheEnable useSeparateRetryQueue
        putConsumeQueueDataByFileChannel enableBuildConsumeQueueConcurrently dispatchFromSenderThread
        batchDispatchRequestThreadPoolNums dispatchCqThreads dispatchCqCacheNum enableAsyncReput
        recheckReputOffsetFromCq enableAcceleratedRecovery enableLogConsumeQueueRepeatedlyBuildWhenRecover
        maxRocksDBIndexQueryDays combineCQLoadingCQTypes combineCQPreferCQType combineAssignOffsetCQType
        combineCQEnableCheckSelf combineCQMaxExtraSearchCommitLogFiles iteratorWhenUseRocksdbConsumeQueue readUnCommitted isolateLogEnable" },
    NoEffect { why: "there is one store, and it is not RocksDB",
        names: "storeType rocksdbCQDoubleWriteEnable cleanRocksDBDirtyCQIntervalMin
        statRocksDBCQIntervalSec memTableFlushIntervalMs realTimePersistRocksDBConfig enableRocksDBLog
        bottomMostCompressionTypeForConsumeQueueStore rocksdbCompressionType rocksdbFlushWalFrequency
        rocksdbWalFileRollingThreshold useSeparateStorePathForRocksdbCQ transRocksDBEnable
        transWriteOriginTransHalfEnable configManagerVersion useSingleRocksDBForAllConfigs
        popConsumerKVServiceEnable popConsumerKVServiceInit popConsumerKVServiceLog
        popConsumerFSServiceInit" },
    NoEffect { why: "checksums are always verified and recovery starts from a checkpoint",
        names: "checkCRCOnRecover checkCommitLogOffsetOnRecover enabledAppendPropCRC forceVerifyPropCRC
        commitLogRecoverMaxNum maxRecoveryCommitlogFiles recoverConcurrently maxChecksumRange
        autoMessageVersionOnTopicLen maxTopicLength" },
    NoEffect { why: "retention deletes whole segments and needs no pacing",
        names: "cleanResourceInterval deleteCommitLogFilesInterval
        deleteConsumeQueueFilesInterval deleteFileBatchMax maxBatchDeleteFilesNum
        destroyMapedFileIntervalForcibly redeleteHangedFileInterval
        logicalDiskSpaceCleanForciblyThreshold correctLogicMinOffsetForceInterval
        correctLogicMinOffsetSleepInterval enableCleanExpiredOffset diskFallRecorded
        disappearTimeAfterStart enableCompaction compactionMappedFileSize compactionCqMappedFileSize
        compactionScheduleInternal compactionThreadNum maxOffsetMapSize" },
    NoEffect { why: "all data is below storePathRootDir and storePathCommitLog",
        names: "storePathDLedgerCommitLog storePathBrokerIdentity storePathEpochFile
        readOnlyCommitLogStorePaths replicasPerDiskPartition messageStorePlugIn" },
    NoEffect { why: "replication is Raft: a quorum, always",
        names: "preferredLeaderId enableBatchPush haListenPort haMasterAddress brokerIP2
        haSendHeartbeatInterval haHousekeepingInterval haTransferBatchSize haMaxGapNotInSync
        haFlowControlEnable maxHaTransferByteInSecond haMaxTimeSlaveNotCatchup inSyncReplicas
        minInSyncReplicas totalReplicas allAckInSyncStateSet enableAutoInSyncReplicas slaveTimeout
        offsetCheckInSlave maxSlaveResendLength syncFromLastFile asyncLearner duplicationEnable
        syncMasterFlushOffsetWhenStartup controllerAddr fetchControllerAddrByDnsLookup
        controllerHeartBeatTimeoutMills syncBrokerMetadataPeriod checkSyncStateSetPeriod
        syncControllerMetadataPeriod brokerElectionPriority syncBrokerMemberGroupPeriod skipPreOnline
        brokerHeartbeatInterval brokerNotActiveTimeoutMillis sendHeartbeatTimeoutMillis inBrokerContainer
        cleanOfflineBrokerInterval lockInStrictMode" },
    NoEffect { why: "topics, groups and offsets are in the log and need no flushing of their own",
        names: "flushConsumerOffsetInterval flushConsumerOffsetHistoryInterval flushDelayOffsetInterval
        persistConsumerOffsetIncrementally consumerOffsetUpdateVersionStep delayOffsetUpdateVersionStep
        enableSplitMetadata splitMetadataSize" },
    NoEffect { why: "the broker registers with all name servers at once, whenever something changed",
        names: "forceRegister registerBrokerTimeoutMills compressedRegister enableSplitRegistration
        splitRegistrationSize enableSingleTopicRegister compatibleWithOldNameSrv
        fetchNamesrvAddrByAddressServer fetchNameSrvAddrByDnsLookup fetchNamesrvAddrInterval
        updateNameServerAddrPeriod loadBalancePollNameServerInterval" },
    NoEffect { why: "metrics are always served at httpPort",
        names: "metricsExporterType metricsPromExporterPort metricsPromExporterHost
        metricsGrpcExporterTarget metricsGrpcExporterHeader metricGrpcExporterTimeOutInMills
        metricGrpcExporterIntervalInMills metricLoggingExporterIntervalInMills metricsLabel
        metricsInDelta metricsOtelCardinalityLimit metricsExportBatchMaxDataPoints
        enableConnectionMetrics enableLagAndDlqMetrics enableMessageStoreMetrics enablePopMetrics
        enableRemotingMetrics enableRequestMetrics enableStatsMetrics enableTransactionMetrics
        enableDetailStat accountStatsEnable accountStatsPrintZeroValues autoDeleteUnusedStats
        maxStatsIdleTimeInMinutes commercialBaseCount commercialSizePerMsg estimateAccumulation
        expectConsumerNumUseFilter transactionMetricFlushInterval enableScheduleMessageStats
        printChannelGroups printChannelGroupsMinNum" },
    NoEffect { why: "timer messages are not available in this version",
        names: "timerWheelEnable timerMaxDelaySec timerPrecisionMs timerRollWindowSlot timerFlushIntervalMs
        timerGetMessageThreadNum timerPutMessageThreadNum timerEnableDisruptor
        timerEnableCheckMetrics timerInterceptDelayLevel timerMetricSmallThreshold
        timerProgressLogIntervalMs timerStopEnqueue timerCongestNumEachSlot timerSkipUnknownError
        timerEnableRetryUntilSuccess timerWarmEnable timerWheelSnapshotFlush timerWheelSnapshotIntervalMs
        mappedFileSizeTimerLog timerColdDataCheckIntervalMs timerRecallToTimeWheelEnable
        timerRecallToTimelineEnable timerReputServiceCorePoolSize timerReputServiceMaxPoolSize
        timerReputServiceQueueCapacity timerRocksDBEnable timerRocksDBPrecisionMs
        timerRocksDBRollIntervalHours timerRocksDBRollMaxTps timerRocksDBRollRangeHours
        timerRocksDBStopScan timerRocksDBTimeExpiredMaxTps appendTopicForTimerDeleteKey
        enableScheduleAsyncDeliver scheduleAsyncDeliverMaxPendingLimit
        scheduleAsyncDeliverMaxResendNum2Blocked recallMessageEnable
        allowRecallWhenBrokerNotWriteable" },
    NoEffect { why: "transactional messages are not available in this version",
        names: "transactionTimeOut transactionCheckMax transactionCheckInterval
        rejectTransactionMessage transactionOpBatchInterval transactionOpMsgMaxSize" },
    NoEffect { why: "SQL92 filters are not available in this version", names: "enablePropertyFilter" },
    NoEffect { why: "the region is not stored with messages in this version", names: "regionId" },
    NoEffect { why: "light queues (LMQ) are not available in this version",
        names: "enableLmq enableLmqQuota maxLmqConsumeQueueNum enableLmqStats enableMultiDispatch
        combineCQUseRocksdbForLmq" },
    NoEffect { why: "access control is not available in this version",
        names: "authConfigPath authenticationProvider authenticationMetadataProvider
        authenticationStrategy authenticationWhitelist initAuthenticationUser
        innerClientAuthenticationCredentials authorizationProvider authorizationMetadataProvider
        authorizationStrategy authorizationWhitelist migrateAuthFromV1Enabled userCacheMaxNum
        userCacheExpiredSecond userCacheRefreshSecond aclCacheMaxNum aclCacheExpiredSecond
        aclCacheRefreshSecond statefulAuthenticationCacheMaxNum
        statefulAuthenticationCacheExpiredSecond statefulAuthorizationCacheMaxNum
        statefulAuthorizationCacheExpiredSecond configName clusterName" },
    NoEffect { why: "pop consumption is not available in this version",
        names: "popPollingSize popPollingMapSize maxPopPollingSize popPollingMapExpireTimeSeconds
        reviveQueueNum reviveInterval reviveMaxSlow reviveScanTime reviveAckWaitMs enablePopLog
        enablePopBufferMerge popCkStayBufferTime popCkStayBufferTimeOut popCkMaxBufferSize
        popCkOffsetMaxQueueSize enablePopBatchAck popLongPollingForceNotifyInterval
        enableNotifyAfterPopOrderLockRelease enableNotifyBeforePopCalculateLag
        enablePopMessageThreshold popInflightMessageThreshold initPopOffsetByCheckMsgInMem
        popFromRetryProbability popFromRetryProbabilityForPriority popReviveConcurrency
        popReviveMaxAttemptTimes popReviveMaxReturnSizePerRead popReviveSkipIfGroupAbsent
        popResponseReturnActualRetryTopic retrieveMessageFromPopRetryTopicV1 enableRetryTopicV2
        enableSkipLongAwaitingAck skipWhenCKRePutReachMaxTimes appendAckAsync appendCkAsync
        useMessageFilterForNotification maxMessageFilterNumForNotification priorityOrderAsc
        defaultPopShareQueueNum defaultMessageRequestMode serverLoadBalancerEnable" },
    NoEffect { why: "lite topics are not available in this version",
        names: "enableLiteEventMode enableLitePopLog liteEventCheckInterval
        liteEventFullDispatchDelayTime liteEventFullDispatchDelayTimeForWildcardGroup
        liteLagCountMetricsEnable liteLagLatencyCollectEnable liteLagLatencyMetricsEnable
        liteLagLatencyTopK liteSubscriptionCheckInterval liteSubscriptionCheckTimeoutMills
        liteTtlCheckInterval maxClientEventCount maxLiteSubscriptionCount minLiteTTl" },
    NoEffect { why: "filters are evaluated when a message is pulled",
        names: "enableCalcFilterBitMap maxErrorRateOfBloomFilter
        filterDataCleanTimeSpan filterSupportRetry filterServerNums" },
    NoEffect { why: "reads are bounded by bytes in flight", names: "coldDataFlowControlEnable
        coldDataScanEnable coldCtrStrategyEnable usePIDColdCtrStrategy cgColdReadThreshold
        globalColdReadThreshold consumerFallbehindThreshold disableConsumeIfConsumerReadSlowly" },
    NoEffect { why: "topics named after the cluster and the broker always exist",
        names: "clusterTopicEnable brokerTopicEnable" },
    NoEffect { why: "a reply is always stored as well", names: "storeReplyMessageEnable" },
    NoEffect { why: "the members of a group are told to reset their offsets themselves",
        names: "useServerSideResetOffset" },
    NoEffect { why: "subscriptions are what members say in their heartbeats",
        names: "useStaticSubscription" },
    NoEffect { why: "pull consumers are always served", names: "rejectPullConsumerEnable" },
    NoEffect { why: "a client is forgotten after two minutes without a heartbeat",
        names: "channelExpiredTimeout subscriptionExpiredTimeout" },
    NoEffect { why: "members of a group hear of a change at once, if notifyConsumerIdsChangedEnable",
        names: "realTimeNotifyConsumerChange" },
    NoEffect { why: "producers are always registered", names: "enableRegisterProducer" },
    NoEffect { why: "groups of the system need not be created", names: "enableCreateSysGroup" },
    NoEffect { why: "topics of the system are always protected from changes",
        names: "validateSystemTopicWhenUpdateTopic" },
    NoEffect { why: "pop retry topics of a deleted topic always go with it", names: "clearRetryTopicWhenDeleteTopic" },
    NoEffect { why: "traces are sent by clients alone", names: "traceOn" },
    NoEffect { why: "a topic takes every kind of message that is available",
        names: "enableMixedMessageType" },
    NoEffect { why: "broadcasting members keep their offsets themselves",
        names: "enableBroadcastOffsetStore broadcastOffsetExpireSecond
        broadcastOffsetExpireMaxSecond" },
    NoEffect { why: "requests are forwarded to the leader of the group only",
        names: "enableRemoteEscape forwardTimeout" },
    NoEffect { why: PLACE, names: "rocketmqHome brokerConfigPath" },
];

#[cfg(test)]
#[path = "keys_test.rs"]
mod tests;
