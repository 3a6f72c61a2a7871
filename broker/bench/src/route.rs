//! Which broker to send to and which queues it has: asked of the name servers, or of the brokers
//! themselves when they are named on the command line. Creates the topic when it does not exist.

use std::sync::Arc;
use std::time::{Duration, Instant};

use raftmq_remoting::RemotingCommand;
use raftmq_remoting::body::{self, ClusterInfo, QueueData, TopicConfig, TopicRouteData};
use raftmq_remoting::{RequestCode, ResponseCode};
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::BenchError;
use super::connection::Connection;
use raftmq_host::net::Net;

/// Longest wait for the answer to a question about routes or topics.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Age up to which an answer of the name servers is used again. Hundreds of connections that lose
/// their leader at once ask once.
const ROUTE_AGE_MAX: Duration = Duration::from_millis(50);

/// Longest wait for a topic to appear in the route after its creation. A Java broker registers a
/// new topic within a few milliseconds, a name server under load takes longer.
const CREATE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two looks at the route of a new topic.
const CREATE_POLL: Duration = Duration::from_millis(100);

/// brokerId of the master. Source: RocketMQ's `MixAll.MASTER_ID`.
const MASTER_ID: i64 = 0;

/// Whom to ask.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Name servers; each is asked until one answers.
    NameServers(Vec<String>),
    /// The replicas of one broker name, tried in turn.
    Brokers(Vec<String>),
}

/// A broker to send to, and the queues of the topic there: 0 to `queues - 1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub broker_name: String,
    pub address: String,
    pub queues: u32,
}

/// Finds places for the connections of one thread.
#[derive(Debug)]
pub(crate) struct Router {
    net: Arc<dyn Net>,
    target: Target,
    topic: String,
    access: Access,
    /// Queues of a broker that was named on the command line; a route tells them itself.
    queues: u32,
    cached: Mutex<Option<(Instant, Vec<Place>)>>,
}

/// Which queues of a topic count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Router {
    pub(crate) fn new(
        net: Arc<dyn Net>,
        target: Target,
        topic: &str,
        access: Access,
        queues: u32,
    ) -> Self {
        Self {
            net,
            target,
            topic: topic.to_owned(),
            access,
            queues,
            cached: Mutex::new(None),
        }
    }

    /// Makes sure that the topic exists, creating it with `queues` queues on every master when it
    /// does not, and returns the places that have it.
    pub(crate) async fn prepare(&mut self) -> Result<Vec<Place>, BenchError> {
        match self.target.clone() {
            Target::NameServers(_) => self.prepare_route().await,
            Target::Brokers(addresses) => self.prepare_broker(&addresses).await,
        }
    }

    /// The brokers that lead now and have the topic, sorted by name. Replicas named on the command
    /// line are tried in turn, by `attempt`. An error means that no leader is known now.
    pub(crate) async fn places(&self, attempt: usize) -> Result<Vec<Place>, BenchError> {
        if let Target::Brokers(addresses) = &self.target {
            return Ok(vec![Place {
                broker_name: String::new(),
                address: addresses[attempt % addresses.len()].clone(),
                queues: self.queues,
            }]);
        }
        let mut cached = self.cached.lock().await;
        if let Some((at, places)) = cached.as_ref()
            && at.elapsed() < ROUTE_AGE_MAX
        {
            return Ok(places.clone());
        }
        let places = self.route(&self.topic).await?;
        if places.is_empty() {
            return Err(BenchError::NoLeader(self.topic.clone()));
        }
        *cached = Some((Instant::now(), places.clone()));
        Ok(places)
    }

    /// Where a connection that may send to any broker goes: connections take the brokers in turn.
    pub(crate) async fn place(
        &self,
        connection: usize,
        attempt: usize,
    ) -> Result<Place, BenchError> {
        let places = self.places(attempt).await?;
        Ok(places[connection % places.len()].clone())
    }

    /// Where a connection goes that reads the queues of one broker name.
    pub(crate) async fn place_of(
        &self,
        broker_name: &str,
        attempt: usize,
    ) -> Result<Place, BenchError> {
        let places = self.places(attempt).await?;
        let place = places
            .into_iter()
            .find(|place| place.broker_name == broker_name);
        place.ok_or_else(|| BenchError::NoLeader(self.topic.clone()))
    }

    async fn prepare_route(&self) -> Result<Vec<Place>, BenchError> {
        match self.route(&self.topic).await {
            Ok(places) if !places.is_empty() => return Ok(places),
            Ok(_) => return Err(BenchError::NoLeader(self.topic.clone())),
            Err(BenchError::Answer { code, .. }) if code == ResponseCode::TOPIC_NOT_EXIST.0 => {}
            Err(error) => return Err(error),
        }
        for master in self.masters().await? {
            self.create_topic(&master).await?;
        }
        let start = Instant::now();
        loop {
            match self.route(&self.topic).await {
                Ok(places) if !places.is_empty() => return Ok(places),
                Err(error) if start.elapsed() > CREATE_TIMEOUT => return Err(error),
                Ok(_) if start.elapsed() > CREATE_TIMEOUT => {
                    return Err(BenchError::NoLeader(self.topic.clone()));
                }
                Ok(_) | Err(_) => tokio::time::sleep(CREATE_POLL).await,
            }
        }
    }

    /// Asks the replicas for the topic, and creates it at the first that takes it.
    async fn prepare_broker(&mut self, addresses: &[String]) -> Result<Vec<Place>, BenchError> {
        let mut last_error = None;
        for address in addresses {
            match self.topic_queues(address).await {
                Ok(Some(queues)) => self.queues = queues,
                Ok(None) => match self.create_topic(address).await {
                    Ok(()) => {}
                    Err(error) => {
                        last_error = Some(error);
                        continue;
                    }
                },
                Err(error) => {
                    last_error = Some(error);
                    continue;
                }
            }
            return self.places(0).await;
        }
        Err(last_error.unwrap_or_else(|| BenchError::NoLeader(self.topic.clone())))
    }

    /// Queues of the topic at a broker; `None` when it has no such topic, or is too old to be
    /// asked (code 351 came with RocketMQ 4.9.4).
    async fn topic_queues(&self, address: &str) -> Result<Option<u32>, BenchError> {
        let request = RemotingCommand::request(RequestCode::GET_TOPIC_CONFIG)
            .with_ext("topic", &self.topic)
            .with_ext("lo", "true");
        let answer = self.ask(address, &request).await?;
        if answer.code != ResponseCode::SUCCESS.0 {
            return Ok(None);
        }
        let config: TopicConfig = decode(address, &answer)?;
        Ok(Some(match self.access {
            Access::Read => config.read_queue_nums,
            Access::Write => config.write_queue_nums,
        }))
    }

    async fn create_topic(&self, address: &str) -> Result<(), BenchError> {
        let request = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_TOPIC)
            .with_ext("topic", &self.topic)
            .with_ext("defaultTopic", "TBW102")
            .with_ext("readQueueNums", self.queues)
            .with_ext("writeQueueNums", self.queues)
            .with_ext("perm", "6")
            .with_ext("topicFilterType", "SINGLE_TAG")
            .with_ext("topicSysFlag", "0")
            .with_ext("order", "false");
        let answer = self.ask(address, &request).await?;
        check(address, &answer)
    }

    /// The masters of every broker name, by the cluster table (code 106).
    async fn masters(&self) -> Result<Vec<String>, BenchError> {
        let request = RemotingCommand::request(RequestCode::GET_BROKER_CLUSTER_INFO);
        let (address, answer) = self.ask_name_servers(&request).await?;
        check(&address, &answer)?;
        let table: ClusterInfo = decode(&address, &answer)?;
        let brokers = table.broker_addr_table.into_values();
        let masters: Vec<String> = brokers
            .filter_map(|mut broker| broker.broker_addrs.remove(&MASTER_ID))
            .collect();
        if masters.is_empty() {
            return Err(BenchError::NoLeader(self.topic.clone()));
        }
        Ok(masters)
    }

    /// The masters that have the topic, by the route table (code 105), sorted by broker name.
    async fn route(&self, topic: &str) -> Result<Vec<Place>, BenchError> {
        let request = RemotingCommand::request(RequestCode::GET_ROUTEINFO_BY_TOPIC)
            .with_ext("topic", topic)
            .with_ext("acceptStandardJsonOnly", "true");
        let (address, answer) = self.ask_name_servers(&request).await?;
        check(&address, &answer)?;
        Ok(places(&decode(&address, &answer)?, self.access))
    }

    async fn ask_name_servers(
        &self,
        request: &RemotingCommand,
    ) -> Result<(String, RemotingCommand), BenchError> {
        let Target::NameServers(addresses) = &self.target else {
            return Err(BenchError::NoLeader(self.topic.clone()));
        };
        let mut last_error = BenchError::NoLeader(self.topic.clone());
        for address in addresses {
            match self.ask(address, request).await {
                Ok(answer) => return Ok((address.clone(), answer)),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    async fn ask(
        &self,
        address: &str,
        request: &RemotingCommand,
    ) -> Result<RemotingCommand, BenchError> {
        let mut connection = Connection::open(self.net.as_ref(), address).await?;
        connection.call(request, CALL_TIMEOUT).await
    }
}

/// An error for every answer but SUCCESS.
pub(crate) fn check(address: &str, answer: &RemotingCommand) -> Result<(), BenchError> {
    if answer.code == ResponseCode::SUCCESS.0 {
        return Ok(());
    }
    Err(BenchError::Answer {
        address: address.to_owned(),
        code: answer.code,
        remark: answer.remark.clone().unwrap_or_default(),
    })
}

/// The body of an answer.
fn decode<T: DeserializeOwned>(address: &str, answer: &RemotingCommand) -> Result<T, BenchError> {
    body::decode(&answer.body).map_err(|error| BenchError::bad_answer(address, &error))
}

/// The masters in a route and the queues that each has. A broker without a master (an election
/// runs) is left out.
fn places(route: &TopicRouteData, access: Access) -> Vec<Place> {
    let master_of = |name: &str| {
        let mut brokers = route.broker_datas.iter();
        let broker = brokers.find(|broker| broker.broker_name == name)?;
        broker.broker_addrs.get(&MASTER_ID)
    };
    let place = |data: &QueueData| {
        let queues = match access {
            Access::Read => data.read_queue_nums,
            Access::Write => data.write_queue_nums,
        };
        let address = master_of(&data.broker_name).filter(|_| queues > 0)?;
        Some(Place {
            broker_name: data.broker_name.clone(),
            address: address.clone(),
            queues,
        })
    };
    let mut places: Vec<Place> = route.queue_datas.iter().filter_map(place).collect();
    places.sort_by(|one, two| one.broker_name.cmp(&two.broker_name));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = r#"{"brokerDatas":[
        {"brokerAddrs":{0:"127.0.0.1:1",1:"127.0.0.1:2"},"brokerName":"b1","cluster":"C"},
        {"brokerAddrs":{"0":"h:3"},"brokerName":"b0","cluster":"C"},
        {"brokerAddrs":{"2":"h:4"},"brokerName":"leaderless","cluster":"C"}],
        "filterServerTable":{},"queueDatas":[
        {"brokerName":"b1","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":3},
        {"brokerName":"b0","perm":4,"readQueueNums":8,"topicSysFlag":0,"writeQueueNums":0},
        {"brokerName":"leaderless","perm":6,"readQueueNums":8,"writeQueueNums":8}]}"#;

    fn place(broker_name: &str, address: &str, queues: u32) -> Place {
        Place {
            broker_name: broker_name.to_owned(),
            address: address.to_owned(),
            queues,
        }
    }

    #[test]
    fn a_route_gives_the_masters_that_have_queues_sorted_by_name() {
        let route: TopicRouteData = body::decode(ROUTE.as_bytes()).unwrap();
        let write = places(&route, Access::Write);
        assert_eq!(write, vec![place("b1", "127.0.0.1:1", 3)]);
        let read = places(&route, Access::Read);
        assert_eq!(
            read,
            vec![place("b0", "h:3", 8), place("b1", "127.0.0.1:1", 4)]
        );
    }
}
