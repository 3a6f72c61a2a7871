//! One remoting command: a request or a response, as both header forms carry it.

use std::fmt;

use bytes::Bytes;

use crate::{
    code::{LanguageCode, ResponseCode, version},
    ext_fields::ExtFields,
};

/// `flag` bit: the command is a response.
pub const FLAG_RESPONSE: i32 = 0x1;
/// `flag` bit: the sender wants no answer.
pub const FLAG_ONEWAY: i32 = 0x2;

/// Form of the header. A response uses the form of its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SerializeType {
    /// JSON text, the default of every client.
    #[default]
    Json,
    /// RocketMQ's binary form. Its `code` is an int16: larger codes arrive truncated.
    RocketMq,
}

impl SerializeType {
    /// The byte in front of the header length.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Json => 0,
            Self::RocketMq => 1,
        }
    }

    /// The form named by `number`, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Json),
            1 => Some(Self::RocketMq),
            _ => None,
        }
    }

    /// Name in the JSON field `serializeTypeCurrentRPC`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::RocketMq => "ROCKETMQ",
        }
    }
}

/// A request or a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemotingCommand {
    /// Request code, or response code in a response.
    pub code: i32,
    /// Language of the sender.
    pub language: LanguageCode,
    /// Version ordinal of the sender; see [`version`].
    pub version: i32,
    /// Id that ties a response to its request on one connection.
    pub opaque: i32,
    /// Bits [`FLAG_RESPONSE`] and [`FLAG_ONEWAY`].
    pub flag: i32,
    /// Error text for people; shown by clients as it is.
    pub remark: Option<String>,
    /// The custom header.
    pub ext_fields: ExtFields,
    /// Form the header came in or goes out in.
    pub serialize: SerializeType,
    /// Meaning depends on the code.
    pub body: Bytes,
}

impl RemotingCommand {
    /// A request with JSON header, opaque 0 and nothing else set. Takes a
    /// [`RequestCode`](crate::RequestCode) or its number.
    #[must_use]
    pub fn request(code: impl Into<i32>) -> Self {
        Self {
            code: code.into(),
            language: LanguageCode::RUST,
            version: version::CURRENT,
            opaque: 0,
            flag: 0,
            remark: None,
            ext_fields: ExtFields::new(),
            serialize: SerializeType::Json,
            body: Bytes::new(),
        }
    }

    /// A response to `request`: same opaque, same header form.
    #[must_use]
    pub fn response_to(request: &Self, code: ResponseCode) -> Self {
        let mut response = Self::request(code);
        response.flag = FLAG_RESPONSE;
        response.opaque = request.opaque;
        response.serialize = request.serialize;
        response
    }

    /// Whether this is a response.
    #[must_use]
    pub fn is_response(&self) -> bool {
        self.flag & FLAG_RESPONSE != 0
    }

    /// Whether the sender of this request wants no answer.
    #[must_use]
    pub fn is_oneway(&self) -> bool {
        self.flag & FLAG_ONEWAY != 0
    }

    /// Says that no answer is wanted.
    pub fn mark_oneway(&mut self) {
        self.flag |= FLAG_ONEWAY;
    }

    /// Sets the opaque id.
    #[must_use]
    pub fn with_opaque(mut self, opaque: i32) -> Self {
        self.opaque = opaque;
        self
    }

    /// Sets the remark.
    #[must_use]
    pub fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = Some(remark.into());
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets one extField.
    #[must_use]
    pub fn with_ext(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.ext_fields.insert(key, value);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::RequestCode;

    #[test]
    fn response_repeats_opaque_and_header_form_of_its_request() {
        let mut request = RemotingCommand::request(RequestCode::PULL_MESSAGE).with_opaque(77);
        request.serialize = SerializeType::RocketMq;
        request.mark_oneway();
        assert!(request.is_oneway() && !request.is_response());
        let response = RemotingCommand::response_to(&request, ResponseCode::PULL_NOT_FOUND)
            .with_remark("nothing")
            .with_ext("minOffset", 3);
        assert_eq!((response.code, response.opaque), (19, 77));
        assert_eq!(response.serialize, SerializeType::RocketMq);
        assert!(response.is_response() && !response.is_oneway());
        assert_eq!(response.ext_fields.get("minOffset"), Some("3"));
    }
}
