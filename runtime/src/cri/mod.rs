//! The CRI services: parse, call the daemon, convert. What is not built answers UNIMPLEMENTED.

pub(crate) mod container_config;
mod convert;
mod image_service;
mod info;
mod lists;
mod runtime_service;
mod status;

pub(crate) use container_config as config;
pub(crate) use convert::{container_status, sandbox_status};
pub(crate) use image_service::{encoding, filesystem, pull_error};
pub(crate) use status::status;

use std::sync::Arc;

use crisp_proto::cri::image_service_server::ImageServiceServer;
use crisp_proto::cri::runtime_service_server::RuntimeServiceServer;

use crate::daemon::Daemon;
use crate::server::MESSAGE_BYTES_MAX;

/// RuntimeService on this daemon.
pub(crate) fn runtime_service(daemon: &Arc<Daemon>) -> RuntimeServiceServer<runtime_service::Runtime> {
    RuntimeServiceServer::new(runtime_service::Runtime::new(Arc::clone(daemon)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// ImageService on this daemon.
pub(crate) fn image_service(daemon: &Arc<Daemon>) -> ImageServiceServer<image_service::Images> {
    ImageServiceServer::new(image_service::Images::new(Arc::clone(daemon)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}
