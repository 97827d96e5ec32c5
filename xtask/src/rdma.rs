//! libibverbs and librdmacm. Only what is listed here is bound, so the output is the same from the headers of all versions that
//! were tried: 44 (Debian 12), 56 (Debian 13) and 65.

use bindgen::Builder;
use bindgen::callbacks::{
    DeriveTrait, EnumVariantCustomBehavior, EnumVariantValue, ImplementsTrait, ParseCallbacks,
};
use std::error::Error;

/// What both files begin with.
const NOTE: &str = "\
// Made by `cargo run --manifest-path xtask/Cargo.toml -- bindings` from the headers of rdma-core, which are under the GPL 2 or
// the OpenIB.org BSD license, by choice. Here it is the latter: see LICENSE-rdma-core.";

/// Two things that grow with the versions, reduced to what stays.
///
/// `ibv_query_port` is a macro over an entry of `verbs_context`, which grows at its beginning: what stays is how far before the
/// last field the others lie. That entry takes the size of an `ibv_port_attr`, which grows at its end, and fills as much.
const VERBS_HEADER: &str = "
#include <infiniband/verbs.h>
enum verbs_context_layout {
    VERBS_CONTEXT_QUERY_PORT = offsetof(struct verbs_context, context) - offsetof(struct verbs_context, query_port),
    VERBS_CONTEXT_SZ = offsetof(struct verbs_context, context) - offsetof(struct verbs_context, sz),
    VERBS_CONTEXT_TAIL = sizeof(struct verbs_context) - offsetof(struct verbs_context, query_port),
};
struct verbs_port {
    enum ibv_port_state state;
    enum ibv_mtu max_mtu;
    enum ibv_mtu active_mtu;
    int gid_tbl_len;
    uint32_t port_cap_flags;
    uint32_t max_msg_sz;
};
_Static_assert(offsetof(struct verbs_port, state) == offsetof(struct ibv_port_attr, state), \"\");
_Static_assert(offsetof(struct verbs_port, active_mtu) == offsetof(struct ibv_port_attr, active_mtu), \"\");
_Static_assert(offsetof(struct verbs_port, max_msg_sz) == offsetof(struct ibv_port_attr, max_msg_sz), \"\");
";

/// An event's union grows, within its size; and enumerations without a name would get numbers for names that depend on what
/// else is in the headers.
const CM_HEADER: &str = "
#include <rdma/rdma_cma.h>
struct cm_event {
    struct rdma_cm_id *id;
    struct rdma_cm_id *listen_id;
    enum rdma_cm_event_type event;
    int status;
    struct rdma_conn_param conn;
};
_Static_assert(sizeof(struct cm_event) <= sizeof(struct rdma_cm_event), \"\");
_Static_assert(offsetof(struct cm_event, id) == offsetof(struct rdma_cm_event, id), \"\");
_Static_assert(offsetof(struct cm_event, listen_id) == offsetof(struct rdma_cm_event, listen_id), \"\");
_Static_assert(offsetof(struct cm_event, event) == offsetof(struct rdma_cm_event, event), \"\");
_Static_assert(offsetof(struct cm_event, status) == offsetof(struct rdma_cm_event, status), \"\");
_Static_assert(offsetof(struct cm_event, conn) == offsetof(struct rdma_cm_event, param.conn), \"\");
enum cm_option {
    CM_LEVEL_ID = RDMA_OPTION_ID,
    CM_TOS = RDMA_OPTION_ID_TOS,
    CM_REUSEADDR = RDMA_OPTION_ID_REUSEADDR,
    CM_ACK_TIMEOUT = RDMA_OPTION_ID_ACK_TIMEOUT,
};
";

const VERBS_FUNCTIONS: &[&str] = &[
    "ibv_ack_async_event",
    "ibv_ack_cq_events",
    "ibv_alloc_pd",
    "ibv_close_device",
    "ibv_create_comp_channel",
    "ibv_create_cq",
    "ibv_dealloc_pd",
    "ibv_dereg_mr",
    "ibv_destroy_comp_channel",
    "ibv_destroy_cq",
    "ibv_destroy_qp",
    "ibv_event_type_str",
    "ibv_fork_init",
    "ibv_free_device_list",
    "ibv_get_async_event",
    "ibv_get_cq_event",
    "ibv_get_device_list",
    "ibv_get_device_name",
    "ibv_modify_qp",
    "ibv_open_device",
    "ibv_port_state_str",
    "ibv_query_device",
    "ibv_query_qp",
    "ibv_reg_mr_iova2",
    "ibv_wc_status_str",
];

const VERBS_TYPES: &[&str] = &[
    "__be16",
    "ibv_access_flags",
    "ibv_qp_attr_mask",
    "ibv_recv_wr",
    "ibv_send_flags",
    "ibv_send_wr",
    "ibv_wc",
    "ibv_wc_flags",
    "verbs_port",
];

const VERBS_ENUMERATORS: &[&str] = &[
    "IBV_ACCESS_LOCAL_WRITE",
    "IBV_ACCESS_REMOTE_WRITE",
    "IBV_EVENT_CQ_ERR",
    "IBV_EVENT_DEVICE_FATAL",
    "IBV_EVENT_PORT_ACTIVE",
    "IBV_EVENT_PORT_ERR",
    "IBV_EVENT_QP_FATAL",
    "IBV_EVENT_QP_REQ_ERR",
    "IBV_EVENT_QP_ACCESS_ERR",
    "IBV_EVENT_PATH_MIG",
    "IBV_EVENT_PATH_MIG_ERR",
    "IBV_EVENT_COMM_EST",
    "IBV_EVENT_SQ_DRAINED",
    "IBV_EVENT_QP_LAST_WQE_REACHED",
    "IBV_PORT_ACTIVE",
    "IBV_QPS_ERR",
    "IBV_QPS_RTS",
    "IBV_QPT_RC",
    "IBV_QP_STATE",
    "IBV_SEND_INLINE",
    "IBV_SEND_SIGNALED",
    "IBV_TRANSPORT_IB",
    "IBV_TRANSPORT_IWARP",
    "IBV_WC_RECV",
    "IBV_WC_RECV_RDMA_WITH_IMM",
    "IBV_WC_RNR_RETRY_EXC_ERR",
    "IBV_WC_RETRY_EXC_ERR",
    "IBV_WC_SUCCESS",
    "IBV_WC_WITH_IMM",
    "IBV_WC_WR_FLUSH_ERR",
    "IBV_WR_RDMA_WRITE",
    "IBV_WR_RDMA_WRITE_WITH_IMM",
    "IBV_WR_SEND",
];

const CM_FUNCTIONS: &[&str] = &[
    "rdma_accept",
    "rdma_ack_cm_event",
    "rdma_bind_addr",
    "rdma_connect",
    "rdma_create_event_channel",
    "rdma_create_id",
    "rdma_create_qp",
    "rdma_destroy_event_channel",
    "rdma_destroy_id",
    "rdma_destroy_qp",
    "rdma_disconnect",
    "rdma_event_str",
    "rdma_free_devices",
    "rdma_get_cm_event",
    "rdma_get_devices",
    "rdma_get_dst_port",
    "rdma_get_src_port",
    "rdma_listen",
    "rdma_migrate_id",
    "rdma_reject",
    "rdma_resolve_addr",
    "rdma_resolve_route",
    "rdma_set_option",
];

const CM_ENUMERATORS: &[&str] = &[
    "RDMA_CM_EVENT_ADDR_ERROR",
    "RDMA_CM_EVENT_ADDR_RESOLVED",
    "RDMA_CM_EVENT_CONNECT_ERROR",
    "RDMA_CM_EVENT_CONNECT_REQUEST",
    "RDMA_CM_EVENT_DEVICE_REMOVAL",
    "RDMA_CM_EVENT_DISCONNECTED",
    "RDMA_CM_EVENT_ESTABLISHED",
    "RDMA_CM_EVENT_REJECTED",
    "RDMA_CM_EVENT_ROUTE_ERROR",
    "RDMA_CM_EVENT_ROUTE_RESOLVED",
    "RDMA_CM_EVENT_TIMEWAIT_EXIT",
    "RDMA_CM_EVENT_UNREACHABLE",
    "RDMA_PS_TCP",
];

/// Of the two headers above, bound as a whole.
const OWN_ENUMS: &[&str] = &["enum verbs_context_layout", "enum cm_option"];

#[derive(Debug)]
struct Callbacks;

impl ParseCallbacks for Callbacks {
    fn enum_variant_behavior(
        &self,
        enum_name: Option<&str>,
        variant: &str,
        _value: EnumVariantValue,
    ) -> Option<EnumVariantCustomBehavior> {
        let listed = VERBS_ENUMERATORS.contains(&variant) || CM_ENUMERATORS.contains(&variant);
        let own = enum_name.is_some_and(|name| OWN_ENUMS.contains(&name));
        (!own && !listed).then_some(EnumVariantCustomBehavior::Hide)
    }

    /// Of libc and of the other file, all plain data.
    fn blocklisted_type_implements_trait(
        &self,
        _name: &str,
        derive: DeriveTrait,
    ) -> Option<ImplementsTrait> {
        matches!(derive, DeriveTrait::Copy).then_some(ImplementsTrait::Yes)
    }
}

fn builder(header: &str, functions: &[&str]) -> Result<Builder, Box<dyn Error>> {
    let builder = crate::builder(NOTE, header, functions)?
        .bitfield_enum("ibv_(access|send)_flags|ibv_wc_flags|ibv_qp_attr_mask")
        .parse_callbacks(Box::new(Callbacks));
    Ok(builder)
}

/// The names of the files, and what is in them.
pub fn bindings() -> Result<Vec<(&'static str, String)>, Box<dyn Error>> {
    let mut verbs = builder(VERBS_HEADER, VERBS_FUNCTIONS)?
        .dynamic_library_name("Ibverbs")
        .raw_line("use libc::{pthread_cond_t, pthread_mutex_t};")
        .allowlist_type("verbs_context_layout");
    for name in VERBS_TYPES {
        verbs = verbs.allowlist_type(name);
    }
    let cm = builder(CM_HEADER, CM_FUNCTIONS)?
        .dynamic_library_name("Rdmacm")
        .raw_line("use super::verbs::*;")
        .raw_line("use libc::{sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage};")
        .blocklist_file(".*/infiniband/verbs\\.h")
        .blocklist_file(".*/(linux|asm-generic)/.*")
        .opaque_type("ibv_sa_path_rec")
        .blocklist_type("rdma_cm_event(__bindgen.*)?")
        .raw_line("pub type rdma_cm_event = cm_event;")
        .allowlist_type("cm_event|cm_option");
    Ok(vec![
        ("verbs.rs", on_x86(&verbs.generate()?.to_string())),
        ("rdmacm.rs", on_x86(&cm.generate()?.to_string())),
    ])
}

/// The layouts are those of the headers as x86-64 has them: elsewhere glibc's mutexes, of which some have one inside, are larger.
fn on_x86(text: &str) -> String {
    const LAYOUT: &str = "const _ : () =";
    text.replace(
        LAYOUT,
        &format!("#[cfg(target_arch = \"x86_64\")]\n{LAYOUT}"),
    )
}
