//! `tbusd cert`: an authority for a cluster, and certificates of its nodes.

use crate::command::{Failure, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tbus::config::PemFiles;
use tbus_transport::tls::{self, Credentials};

/// Clocks of hosts differ; a certificate begins so long before it is made.
const BEFORE: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// What names of clusters get behind them in certificates.
const SUFFIX: &str = ".tbus";

/// An authority that is to be made.
#[derive(Clone, Debug)]
pub struct Authority {
    /// Where to.
    pub out: PathBuf,
    /// Of which cluster.
    pub cluster: String,
    /// For how long.
    pub days: u32,
}

/// A node's certificate that is to be made.
#[derive(Clone, Debug)]
pub struct NodeCertificate {
    /// Where the authority is.
    pub ca: PathBuf,
    /// The node's number.
    pub node: u32,
    /// Where to.
    pub out: PathBuf,
    /// For how long.
    pub days: u32,
}

fn failed(what: &str, path: &Path, why: impl Display) -> Failure {
    Failure::Other(format!("{what} {}: {why}", path.display()))
}

/// DER as PEM.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

/// Writes a file as a whole or not at all, with its mode from the beginning.
fn write(path: &Path, mode: u32, text: &str) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let new = path.with_file_name(name);
    let write = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().map_err(|e| {
        let _ = std::fs::remove_file(&new);
        failed("cannot write", path, e)
    })
}

/// Names in certificates are DNS names.
fn refuse_other_names(cluster: &str) -> Result<()> {
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match cluster.len() <= 200 && cluster.split('.').all(label) {
        true => Ok(()),
        false => Err(Failure::Usage(format!(
            "'{cluster}' cannot stand in a certificate; use letters, digits, '-' and '.', or bring certificates of your own \
             and write their names into [[allow]]"
        ))),
    }
}

fn parameters(common_name: &str, names: Vec<String>, days: u32) -> Result<CertificateParams> {
    let refuse = |e| Failure::Usage(format!("{common_name}: {e}"));
    let mut parameters = CertificateParams::new(names).map_err(refuse)?;
    parameters.distinguished_name = DistinguishedName::new();
    parameters
        .distinguished_name
        .push(DnType::CommonName, common_name);
    let now = SystemTime::now();
    parameters.not_before = (now - BEFORE).into();
    parameters.not_after = (now + DAY * days).into();
    Ok(parameters)
}

/// What an authority certifies with.
fn as_authority(common_name: &str, days: u32) -> Result<CertificateParams> {
    let mut parameters = parameters(common_name, Vec::new(), days)?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

fn no_key(e: rcgen::Error) -> Failure {
    Failure::Other(format!("no key could be made: {e}"))
}

/// Makes an authority. Returns what to print.
pub fn make_authority(asked: &Authority) -> Result<String> {
    refuse_other_names(&asked.cluster)?;
    let [certificate, key] = ["ca.pem", "ca.key"].map(|name| asked.out.join(name));
    for path in [&certificate, &key] {
        if path.exists() {
            return Err(Failure::Usage(format!(
                "{} is there already, and all certificates that were made with it would end; remove it, or give another --out",
                path.display()
            )));
        }
    }
    std::fs::create_dir_all(&asked.out).map_err(|e| failed("cannot make", &asked.out, e))?;
    let pair = KeyPair::generate().map_err(no_key)?;
    let parameters = as_authority(&format!("{}{SUFFIX}", asked.cluster), asked.days)?;
    let made = parameters.self_signed(&pair).map_err(no_key)?;
    write(&key, 0o600, &pem("PRIVATE KEY", pair.serialized_der()))?;
    write(&certificate, 0o644, &pem("CERTIFICATE", made.der()))?;
    Ok(format!(
        "{}: the authority of cluster {}, until {}\n{}: its private key; who has it can pass for any node, so keep it away from \
         the nodes\nNow, for each node: tbusd cert node --ca {} --node N --out DIR\n",
        certificate.display(),
        asked.cluster,
        tls::date(SystemTime::now() + DAY * asked.days),
        key.display(),
        asked.out.display()
    ))
}

/// The key in a file, or a new one; and whether it is new.
fn key_at(path: &Path) -> Result<(KeyPair, bool)> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok((read_key(path)?, false)),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let pair = KeyPair::generate().map_err(no_key)?;
            write(path, 0o600, &pem("PRIVATE KEY", pair.serialized_der()))?;
            Ok((pair, true))
        }
        Err(e) => Err(failed("cannot read", path, e)),
    }
}

fn read_key(path: &Path) -> Result<KeyPair> {
    let der = tls::read_key(path).map_err(Failure::Other)?;
    KeyPair::try_from(&der).map_err(|e| {
        failed(
            "this version cannot sign with the key in",
            path,
            format!("{e}; bring certificates of your own instead"),
        )
    })
}

/// Makes a node's certificate, and a key if there is none. Returns what to print.
pub fn make_node(asked: &NodeCertificate) -> Result<String> {
    let [authority, authority_key] = ["ca.pem", "ca.key"].map(|name| asked.ca.join(name));
    let read = tls::read_certificates(&authority).map_err(|e| {
        let mend = format!(
            "make one: tbusd cert ca --out {} --cluster NAME",
            asked.ca.display()
        );
        Failure::Other(format!("{e}; {mend}"))
    })?;
    let common_name = tls::common_name(&read[0]).unwrap_or_default();
    let Some(cluster) = common_name.strip_suffix(SUFFIX) else {
        return Err(failed(
            "not an authority that tbusd cert ca has made:",
            &authority,
            "sign the nodes' certificates with what made it",
        ));
    };
    let issuer = Issuer::new(as_authority(&common_name, 1)?, read_key(&authority_key)?);
    std::fs::create_dir_all(&asked.out).map_err(|e| failed("cannot make", &asked.out, e))?;
    let file = |end: &str| asked.out.join(format!("node-{}.{end}", asked.node));
    let (certificate, key) = (file("pem"), file("key"));
    let (pair, is_new) = key_at(&key)?;
    let name = tls::name_of(asked.node, cluster);
    let mut parameters = parameters(&name, vec![name.clone()], asked.days)?;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    parameters.use_authority_key_identifier_extension = true;
    let made = parameters.signed_by(&pair, &issuer).map_err(no_key)?;
    // Tried before it replaces one that may be in use.
    let new = file(&format!("pem.{}", std::process::id()));
    write(&new, 0o644, &pem("CERTIFICATE", made.der()))?;
    let tried = Credentials::load(&PemFiles {
        certificate: new.clone(),
        private_key: key.clone(),
        authority: authority.clone(),
    });
    let until = match tried {
        Ok(credentials) => credentials.until,
        Err(why) => {
            let _ = std::fs::remove_file(&new);
            return Err(Failure::Other(why));
        }
    };
    std::fs::rename(&new, &certificate).map_err(|e| failed("cannot write", &certificate, e))?;
    let beside = asked.out.join("ca.pem");
    if beside.canonicalize().ok() != authority.canonicalize().ok() {
        let all: String = read.iter().map(|der| pem("CERTIFICATE", der)).collect();
        write(&beside, 0o644, &all)?;
    }
    Ok(format!(
        "{}: the certificate of node {} of cluster {cluster}, for {name}, until {}\n{}: its private key{}\n\nIn its tbusd.toml:\n  \
         certificate = \"node-{n}.pem\"\n  private_key = \"node-{n}.key\"\n  authority = \"ca.pem\"\n",
        certificate.display(),
        asked.node,
        tls::date(until),
        key.display(),
        if is_new {
            ""
        } else {
            ", which was there already and is kept"
        },
        n = asked.node
    ))
}
