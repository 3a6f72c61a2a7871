//! Subscription groups: their configurations and the version of the table.

use std::collections::BTreeMap;

use raftmq_remoting::body::SubscriptionGroupConfig;

use crate::attributes::changed_attributes;
use crate::invariant::{InvariantId, Violation};
use crate::limits::GROUPS_MAX;
use crate::output::Reject;
use crate::topic::{DataVersion, name_is_legal};

/// All subscription groups.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct GroupTable {
    pub(crate) groups: BTreeMap<String, SubscriptionGroupConfig>,
    pub(crate) version: DataVersion,
}

impl GroupTable {
    /// Creates or reconfigures a group. Returns whether anything changed.
    pub(crate) fn put(
        &mut self,
        config: SubscriptionGroupConfig,
        only_if_absent: bool,
        now_ms: u64,
    ) -> Result<bool, Reject> {
        if !name_is_legal(&config.group_name) {
            return Err(Reject::InvalidCommand);
        }
        let present = self.groups.get(&config.group_name);
        if present.is_some_and(|group| only_if_absent || *group == config) {
            return Ok(false);
        }
        if present.is_none() && self.groups.len() >= GROUPS_MAX {
            return Err(Reject::LimitReached);
        }
        self.groups.insert(config.group_name.clone(), config);
        self.version.advance(now_ms);
        Ok(true)
    }

    /// As [`Self::put`]; the attributes of `config` are changes of the present ones.
    pub(crate) fn change(
        &mut self,
        mut config: SubscriptionGroupConfig,
        now_ms: u64,
    ) -> Result<bool, Reject> {
        let present = self.groups.get(&config.group_name);
        let present = present.map(|group| &group.attributes);
        config.attributes = changed_attributes(present, config.attributes)?;
        self.put(config, false, now_ms)
    }

    /// Removes a group. Returns whether it was there.
    pub(crate) fn delete(&mut self, group: &str, now_ms: u64) -> bool {
        let removed = self.groups.remove(group).is_some();
        if removed {
            self.version.advance(now_ms);
        }
        removed
    }

    pub(crate) fn check(&self) -> Result<(), Violation> {
        for (name, config) in &self.groups {
            if *name != config.group_name {
                return Err(Violation::new(InvariantId::N1, format!("group {name}")));
            }
            if !name_is_legal(name) {
                return Err(Violation::new(InvariantId::Q4, format!("group {name}")));
            }
        }
        if self.groups.len() > GROUPS_MAX {
            return Err(Violation::new(InvariantId::Q4, "the group table"));
        }
        Ok(())
    }
}
