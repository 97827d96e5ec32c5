//! UCP of UCX. Only what is listed here is bound, so the output is the same from the headers of all versions that were tried: 1.13
//! (Debian 12), 1.14 and 1.22.

use bindgen::Builder;
use bindgen::callbacks::{EnumVariantCustomBehavior, EnumVariantValue, ParseCallbacks};
use std::error::Error;

const NOTE: &str = "\
// Made by `cargo run --manifest-path xtask/Cargo.toml -- bindings` from the headers of UCX, which are under the BSD 3-clause
// license: see LICENSE-ucx.";

/// Three structures grow at their ends from version to version; a mask in each says which fields count, so what the oldest has is
/// enough for all. Two functions come in another order in some.
const HEADER: &str = "
#include <ucp/api/ucp_def.h>
ucs_status_t ucp_rkey_pack(ucp_context_h context, ucp_mem_h memh, void **rkey_buffer_p, size_t *size_p);
void ucp_rkey_buffer_release(void *rkey_buffer);
#include <ucp/api/ucp.h>
#include <stddef.h>
struct context_params {
    uint64_t field_mask;
    uint64_t features;
    size_t request_size;
    ucp_request_init_callback_t request_init;
    ucp_request_cleanup_callback_t request_cleanup;
    uint64_t tag_sender_mask;
    int mt_workers_shared;
    size_t estimated_num_eps;
    size_t estimated_num_ppn;
    const char *name;
};
_Static_assert(sizeof(struct context_params) <= sizeof(ucp_params_t), \"\");
_Static_assert(offsetof(struct context_params, features) == offsetof(ucp_params_t, features), \"\");
_Static_assert(offsetof(struct context_params, mt_workers_shared) == offsetof(ucp_params_t, mt_workers_shared), \"\");
_Static_assert(offsetof(struct context_params, name) == offsetof(ucp_params_t, name), \"\");
struct map_params {
    uint64_t field_mask;
    void *address;
    size_t length;
};
_Static_assert(sizeof(struct map_params) <= sizeof(ucp_mem_map_params_t), \"\");
_Static_assert(offsetof(struct map_params, address) == offsetof(ucp_mem_map_params_t, address), \"\");
_Static_assert(offsetof(struct map_params, length) == offsetof(ucp_mem_map_params_t, length), \"\");
struct request_param {
    uint32_t op_attr_mask;
    uint32_t flags;
    void *request;
    ucp_send_nbx_callback_t cb;
    ucp_datatype_t datatype;
    void *user_data;
    void *reply_buffer;
    ucs_memory_type_t memory_type;
    void *recv_info;
    ucp_mem_h memh;
};
_Static_assert(sizeof(struct request_param) <= sizeof(ucp_request_param_t), \"\");
_Static_assert(offsetof(struct request_param, flags) == offsetof(ucp_request_param_t, flags), \"\");
_Static_assert(offsetof(struct request_param, memh) == offsetof(ucp_request_param_t, memh), \"\");
";

const FUNCTIONS: &[&str] = &[
    "ucp_am_data_release",
    "ucp_am_recv_data_nbx",
    "ucp_am_send_nbx",
    "ucp_cleanup",
    "ucp_config_modify",
    "ucp_config_read",
    "ucp_config_release",
    "ucp_conn_request_query",
    "ucp_ep_close_nbx",
    "ucp_ep_create",
    "ucp_ep_flush_nbx",
    "ucp_ep_print_info",
    "ucp_ep_rkey_unpack",
    "ucp_get_version",
    "ucp_init_version",
    "ucp_listener_create",
    "ucp_listener_destroy",
    "ucp_listener_query",
    "ucp_listener_reject",
    "ucp_mem_map",
    "ucp_mem_unmap",
    "ucp_put_nbx",
    "ucp_request_cancel",
    "ucp_request_check_status",
    "ucp_request_free",
    "ucp_rkey_buffer_release",
    "ucp_rkey_destroy",
    "ucp_rkey_pack",
    "ucp_worker_arm",
    "ucp_worker_create",
    "ucp_worker_destroy",
    "ucp_worker_get_efd",
    "ucp_worker_progress",
    "ucp_worker_set_am_recv_handler",
    "ucs_status_string",
];

const ENUMERATORS: &[&str] = &[
    "UCP_AM_HANDLER_PARAM_FIELD_ARG",
    "UCP_AM_HANDLER_PARAM_FIELD_CB",
    "UCP_AM_HANDLER_PARAM_FIELD_ID",
    "UCP_AM_RECV_ATTR_FIELD_REPLY_EP",
    "UCP_AM_RECV_ATTR_FLAG_RNDV",
    "UCP_AM_SEND_FLAG_EAGER",
    "UCP_AM_SEND_FLAG_REPLY",
    "UCP_AM_SEND_FLAG_RNDV",
    "UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ADDR",
    "UCP_EP_CLOSE_FLAG_FORCE",
    "UCP_EP_PARAMS_FLAGS_CLIENT_SERVER",
    "UCP_EP_PARAM_FIELD_CONN_REQUEST",
    "UCP_EP_PARAM_FIELD_ERR_HANDLER",
    "UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE",
    "UCP_EP_PARAM_FIELD_FLAGS",
    "UCP_EP_PARAM_FIELD_SOCK_ADDR",
    "UCP_ERR_HANDLING_MODE_PEER",
    "UCP_FEATURE_AM",
    "UCP_FEATURE_RMA",
    "UCP_FEATURE_WAKEUP",
    "UCP_LISTENER_ATTR_FIELD_SOCKADDR",
    "UCP_LISTENER_PARAM_FIELD_CONN_HANDLER",
    "UCP_LISTENER_PARAM_FIELD_SOCK_ADDR",
    "UCP_MEM_MAP_PARAM_FIELD_ADDRESS",
    "UCP_MEM_MAP_PARAM_FIELD_LENGTH",
    "UCP_OP_ATTR_FIELD_FLAGS",
    "UCP_OP_ATTR_FIELD_MEMH",
    "UCP_PARAM_FIELD_FEATURES",
    "UCP_PARAM_FIELD_MT_WORKERS_SHARED",
    "UCP_PARAM_FIELD_NAME",
    "UCP_WORKER_PARAM_FIELD_THREAD_MODE",
    "UCS_ERR_BUSY",
    "UCS_ERR_INVALID_PARAM",
    "UCS_ERR_NOT_CONNECTED",
    "UCS_ERR_NO_DEVICE",
    "UCS_ERR_NO_ELEM",
    "UCS_ERR_UNREACHABLE",
    "UCS_INPROGRESS",
    "UCS_OK",
    "UCS_THREAD_MODE_SERIALIZED",
];

const ENUMS: &[&str] = &[
    "ucp_am_handler_param_field",
    "ucp_am_recv_attr_t",
    "ucp_conn_request_attr_field",
    "ucp_ep_close_flags_t",
    "ucp_ep_params_field",
    "ucp_ep_params_flags_field",
    "ucp_err_handling_mode_t",
    "ucp_feature",
    "ucp_listener_attr_field",
    "ucp_listener_params_field",
    "ucp_mem_map_params_field",
    "ucp_op_attr_t",
    "ucp_params_field",
    "ucp_send_am_flags",
    "ucp_worker_params_field",
];

#[derive(Debug)]
struct Callbacks;

impl ParseCallbacks for Callbacks {
    fn enum_variant_behavior(
        &self,
        _enum_name: Option<&str>,
        variant: &str,
        _value: EnumVariantValue,
    ) -> Option<EnumVariantCustomBehavior> {
        (!ENUMERATORS.contains(&variant)).then_some(EnumVariantCustomBehavior::Hide)
    }
}

fn builder() -> Result<Builder, Box<dyn Error>> {
    let builder = crate::builder(NOTE, HEADER, FUNCTIONS)?
        .raw_line("use libc::{FILE, sockaddr, sockaddr_storage, socklen_t};")
        .dynamic_library_name("Ucp")
        .parse_callbacks(Box::new(Callbacks))
        .blocklist_type("FILE|_IO_FILE")
        .blocklist_type("ucp_params(_t)?|ucp_mem_map_params(_t)?|ucp_request_param_t(__bindgen.*)?")
        .allowlist_type("context_params|map_params|request_param")
        .allowlist_type(ENUMS.join("|"))
        .raw_line("pub type ucp_params_t = context_params;")
        .raw_line("pub type ucp_mem_map_params_t = map_params;")
        .raw_line("pub type ucp_request_param_t = request_param;");
    Ok(builder)
}

/// The name of the file, and what is in it.
pub fn bindings() -> Result<Vec<(&'static str, String)>, Box<dyn Error>> {
    Ok(vec![("ucp.rs", builder()?.generate()?.to_string())])
}
