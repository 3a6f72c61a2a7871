//! Tests of the budget.

use std::task::Poll;

use futures::poll;

use super::*;

const MIB: usize = 1 << 20;

fn budget(bytes: usize) -> Arc<Budget> {
    Budget::unseen(bytes as u64)
}

/// Takes pieces of `piece` bytes until none is granted.
fn take_all(account: &Arc<Account>, piece: usize) -> Vec<Permit> {
    std::iter::from_fn(|| account.try_take(Holder::Received, piece)).collect()
}

fn drawn(budget: &Budget) -> usize {
    budget.drawn.load(Ordering::SeqCst)
}

fn shown(budget: &Budget) -> Vec<i64> {
    budget.holders.iter().map(IntGauge::get).collect()
}

#[test]
fn what_is_dropped_is_given_back_to_the_byte() {
    let budget = budget(100 * MIB);
    let account = budget.account();
    let mut answer = account.take(Holder::Answers, 0);
    answer.grow(SHARE_BYTES);
    let mut request = account.try_take(Holder::Received, 5000).unwrap();
    assert_eq!(
        (account.held_bytes(), drawn(&budget)),
        (SHARE_BYTES + 5000, 5000)
    );
    assert_eq!(account.unsent_bytes(), SHARE_BYTES);
    request.becomes(Holder::Proposer);
    assert_eq!(shown(&budget), [0, 5000, 0, 0, SHARE_BYTES as i64]);
    answer.clear();
    assert_eq!((account.held_bytes(), drawn(&budget)), (5000, 0));
    {
        let _parked = budget.show(Holder::Parked, 2000);
        assert_eq!(shown(&budget)[3], 2000);
    }
    drop(request);
    drop(answer);
    assert_eq!((account.held_bytes(), account.unsent_bytes()), (0, 0));
    assert_eq!(shown(&budget), [0; 5]);
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let budget = budget(MIB);
    let account = budget.account();
    let kept = account.try_take(Holder::Received, 1000).unwrap();
    assert!(account.try_take(Holder::Received, 2 * MIB).is_none());
    assert_eq!((account.held_bytes(), drawn(&budget)), (1000, 0));
    drop(kept);
}

#[test]
fn however_many_are_greedy_as_much_is_left_for_the_next_as_each_of_them_has() {
    for greedy in [1, 2, 60, 200] {
        let budget = budget(256 * MIB);
        let accounts: Vec<_> = (0..greedy).map(|_| budget.account()).collect();
        // In turn, until none of them gets any more.
        let mut held = Vec::new();
        loop {
            let before = held.len();
            let more = accounts
                .iter()
                .filter_map(|account| account.try_take(Holder::Received, 10_000));
            held.extend(more);
            if held.len() == before {
                break;
            }
        }
        let rest = 256 * MIB - drawn(&budget);
        let part = 256 * MIB / (greedy + 1);
        assert!(rest + 100_000 > part, "{greedy}: {rest} of {part} are left");
        let next = budget.account();
        let taken: usize = take_all(&next, 10_000)
            .iter()
            .map(|permit| permit.bytes)
            .sum();
        assert!(
            taken + 20_000 > part / 2,
            "{greedy}: the next has {taken} of {part}"
        );
    }
}

#[test]
fn a_share_is_granted_whatever_others_hold() {
    let budget = budget(MIB);
    let other = budget.account();
    let _all = other.take(Holder::Answers, 10 * MIB);
    let account = budget.account();
    let permits = take_all(&account, 1024);
    assert_eq!(permits.len(), SHARE_BYTES / 1024);
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_what_is_given_back_and_is_told_when_nothing_is() {
    let budget = budget(MIB);
    let (other, account) = (budget.account(), budget.account());
    let all = other.take(Holder::Received, 2 * MIB);
    let begin = Instant::now();
    let refused = account.wait_to_take(Holder::Received, MIB / 4).await;
    assert_eq!(refused.unwrap_err(), NoRoom::Busy);
    assert_eq!(begin.elapsed(), ROOM_TIMEOUT);
    let mut waits = std::pin::pin!(account.wait_to_take(Holder::Received, MIB / 4));
    assert!(poll!(&mut waits).is_pending());
    drop(all);
    assert!(matches!(poll!(&mut waits), Poll::Ready(Ok(_))));
    // What is given back of the own share counts as well.
    let _all = other.take(Holder::Received, 2 * MIB);
    let own = account.try_take(Holder::Received, SHARE_BYTES).unwrap();
    let mut waits = std::pin::pin!(account.wait_to_take(Holder::Received, 1000));
    assert!(poll!(&mut waits).is_pending());
    drop(own);
    assert!(matches!(poll!(&mut waits), Poll::Ready(Ok(_))));
    assert_eq!(budget.waiting.tasks.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn two_thousand_answers_to_a_client_that_does_not_read_wait_for_it() {
    let budget = budget(256 * MIB);
    let account = budget.account();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2000 {
        let account = Arc::clone(&account);
        tasks.spawn(async move { account.room(2 * MIB).await });
    }
    let mut taken = Vec::new();
    while taken.len() < UNSENT_BYTES_MAX / (2 * MIB) {
        taken.push(tasks.join_next().await.unwrap().unwrap().unwrap());
    }
    // Nothing else gets room, however long it waits.
    let more = tokio::time::timeout(10 * ROOM_TIMEOUT, tasks.join_next()).await;
    assert!(more.is_err());
    assert_eq!(account.unsent_bytes(), UNSENT_BYTES_MAX);
    // Each answer that is written lets the next one in.
    taken.pop();
    taken.push(tasks.join_next().await.unwrap().unwrap().unwrap());
    account.close();
    while let Some(ended) = tasks.join_next().await {
        assert_eq!(ended.unwrap().unwrap_err(), NoRoom::Closed);
    }
    drop(taken);
    assert_eq!(account.held_bytes(), 0);
}

#[tokio::test]
async fn one_answer_may_be_larger_than_what_may_wait() {
    let budget = budget(256 * MIB);
    let account = budget.account();
    let room = account.room(2 * UNSENT_BYTES_MAX).await.unwrap();
    let mut next = std::pin::pin!(account.room(1));
    assert!(poll!(&mut next).is_pending());
    drop(room);
    assert!(poll!(&mut next).is_ready());
}

#[test]
fn the_default_is_a_part_of_the_memory_within_bounds() {
    assert_eq!(default_bytes(64 << 20), BUDGET_BYTES_MIN);
    assert_eq!(default_bytes(2 << 30), 512 << 20);
    assert_eq!(default_bytes(1 << 40), DEFAULT_BUDGET_BYTES_MAX);
}
