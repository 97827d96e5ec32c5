//! TLS between relays: who is believed, by which files, and in which words a refusal is told.
//!
//! Only TLS 1.3, both sides with a certificate, and nothing is resumed: what was checked once is checked again with every
//! connection, so a certificate that has expired or an authority that was exchanged holds from the next one on.

mod der;
mod session;

pub use der::{common_name, date};
pub use session::{Session, is_record};

use crate::wire::{Hello, TRANSPORT_TCP, TRANSPORT_TLS};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tbus::config::{AllowedPeer, PemFiles, Security};
use tbus::grm::RelayEndpoint;

/// A certificate that ends within this time is warned about.
pub const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// The name in the certificate of a node, unless another one is given.
pub fn name_of(node: u32, cluster: &str) -> String {
    format!("node-{node}.{cluster}.tbus")
}

/// Own certificate and key, and the authorities that are believed.
pub struct Credentials {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// The names in the own certificate.
    pub names: Vec<String>,
    /// When the own certificate ends.
    pub until: SystemTime,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("names", &self.names)
            .field("until", &self.until)
            .finish_non_exhaustive()
    }
}

/// Reads a private key; refused if anybody but its owner may.
pub fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let fail = |e: &dyn fmt::Display| format!("the private key {}: {e}", path.display());
    let mode = std::fs::metadata(path)
        .map_err(|e| fail(&e))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(fail(&format!(
            "others than its owner may read or change it (mode {:04o}); chmod 600 {}, and make a new one if others were \
             on this host",
            mode & 0o7777,
            path.display()
        )));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|e| fail(&e))
}

/// Reads the certificates of a file; at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
    let all = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| fail(&e))?;
    match all.is_empty() {
        true => Err(fail(
            &"there is no certificate in it (PEM begins with -----BEGIN CERTIFICATE-----)",
        )),
        false => Ok(all),
    }
}

/// The DNS names in a certificate.
fn names_in(certificate: &CertificateDer<'_>) -> Vec<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate);
    let names = |parsed: webpki::EndEntityCert<'_>| {
        parsed.valid_dns_names().map(str::to_lowercase).collect()
    };
    parsed.map(names).unwrap_or_default()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl Credentials {
    /// Reads the files, and checks what can be checked here: that they fit together, and the time now. An error names the
    /// file and the mend.
    pub fn load(files: &PemFiles) -> Result<Credentials, String> {
        let path = files.certificate.display();
        let mut authorities = RootCertStore::empty();
        for authority in read_certificates(&files.authority)? {
            authorities.add(authority).map_err(|e| {
                let path = files.authority.display();
                format!("{path}: a certificate in it cannot be an authority's: {e}")
            })?;
        }
        let authorities = Arc::new(authorities);
        let chain = read_certificates(&files.certificate)?;
        let own = &chain[0];
        let (from, until) = der::validity(own)
            .ok_or_else(|| format!("{path}: its dates cannot be read; make a new one"))?;
        let now = SystemTime::now();
        if now > until {
            return Err(format!(
                "{path}: the certificate ended on {}; make a new one: tbusd cert node",
                date(until)
            ));
        }
        if now < from {
            return Err(format!(
                "{path}: the certificate begins on {}; correct this host's clock, or make a new one",
                date(from)
            ));
        }
        let names = names_in(own);
        if names.is_empty() {
            return Err(format!(
                "{path}: the certificate has no DNS name among its subject alternative names; make one: tbusd cert node"
            ));
        }
        let verifier = Authorities {
            authorities: authorities.clone(),
            provider: provider(),
        };
        let name = ServerName::try_from(names[0].as_str())
            .map_err(|_| format!("{path}: '{}' is no DNS name", names[0]))?;
        let not_good = |e: &Error| {
            let authority = files.authority.display();
            format!(
                "{path}: not good by the authority {authority}: {}",
                in_words(e)
            )
        };
        let clients = WebPkiClientVerifier::builder_with_provider(authorities, provider())
            .build()
            .map_err(|e| format!("{}: {e}", files.authority.display()))?;
        // It is shown by who dials and by who is dialled, which are different uses.
        let now = UnixTime::now();
        verifier
            .verify_server_cert(own, &chain[1..], &name, &[], now)
            .map_err(|e| not_good(&e))?;
        clients
            .verify_client_cert(own, &chain[1..], now)
            .map_err(|e| not_good(&e))?;
        let both = |key: &PrivateKeyDer<'static>| -> Result<_, Error> {
            let mut server = ServerConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .with_client_cert_verifier(clients)
                .with_single_cert(chain.clone(), key.clone_key())?;
            server.send_tls13_tickets = 0;
            server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
            let mut client = ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&TLS13])?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_auth_cert(chain.clone(), key.clone_key())?;
            client.resumption = Resumption::disabled();
            client.enable_sni = false;
            Ok((Arc::new(client), Arc::new(server)))
        };
        let key = read_key(&files.private_key)?;
        let (client, server) = both(&key).map_err(|e| {
            let key = files.private_key.display();
            match e {
                Error::InconsistentKeys(_) => {
                    format!("{path} and {key} do not belong together; give the key that was made with the certificate")
                }
                e => format!("{path} and {key} cannot be used: {}", in_words(&e)),
            }
        })?;
        Ok(Credentials {
            client,
            server,
            names,
            until,
        })
    }

    /// For who dials. With `expected` the other side must have exactly these names.
    pub fn client(
        &self,
        ip: std::net::IpAddr,
        expected: Option<Vec<String>>,
    ) -> Result<Session, String> {
        let connection = rustls::ClientConnection::new(self.client.clone(), ip.into());
        let connection = connection.map_err(|e| in_words(&e))?;
        Ok(Session::new(connection.into(), expected))
    }

    /// For who was dialled.
    pub fn server(&self) -> Result<Session, String> {
        let connection = rustls::ServerConnection::new(self.server.clone());
        let connection = connection.map_err(|e| in_words(&e))?;
        Ok(Session::new(connection.into(), None))
    }
}

/// Believes every certificate that an authority signed. Whether it is the peer's is asked later: who is dialled says in HELLO
/// which node it is, and only then it is known which name there must be.
#[derive(Debug)]
struct Authorities {
    authorities: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Authorities {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.authorities,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// What went wrong, and the mend where there is one.
fn in_words(error: &Error) -> String {
    use CertificateError as Bad;
    let bad = |what: &str| format!("the certificate {what}");
    match error {
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            bad("has expired; make a new one there: tbusd cert node")
        }
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            bad("is not valid yet; compare the clocks of both hosts")
        }
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            bad("is signed by none of the authorities here; give both hosts the same authority")
        }
        Error::InvalidCertificate(Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. }) => bad(
            "is not for both sides of TLS; its extended key usage must have server and client authentication, or be absent",
        ),
        Error::InvalidCertificate(other) => bad(&format!("is not good: {other}")),
        Error::NoCertificatesPresented => "it shows no certificate".into(),
        Error::PeerIncompatible(_) => {
            format!(
                "it does not speak TLS 1.3 as it is spoken here ({error}); update the older one"
            )
        }
        Error::InvalidMessage(_) => format!("what comes is not TLS ({error})"),
        Error::AlertReceived(alert) => {
            let why = match alert {
                AlertDescription::CertificateExpired => {
                    "this host's certificate has expired, or the clocks differ; make a new one: tbusd cert node"
                }
                AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                    "it does not know the authority that signed this host's certificate; give both hosts the same authority"
                }
                AlertDescription::CertificateRequired => "it asks for a certificate",
                AlertDescription::ProtocolVersion => "it does not speak TLS 1.3; update it",
                _ => return format!("the peer refuses: {alert:?}"),
            };
            format!("the peer refuses: {why}")
        }
        other => other.to_string(),
    }
}

/// Who is believed to be which node, and how its data goes.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Part of the names that certificates have if `allow` gives no other.
    pub cluster: String,
    /// For nodes that `allow` says nothing about.
    pub security: Security,
    /// If there is any, no other node is believed.
    pub allow: Vec<AllowedPeer>,
}

impl Trust {
    /// How the data of a node goes.
    pub fn security_of(&self, node: u32) -> Security {
        let entry = self.allow.iter().find(|peer| peer.node == node);
        entry.map_or(self.security, |peer| peer.security)
    }

    /// Whether who has shown a certificate with `names` may be who it says; the transport of its data.
    pub fn admit(&self, names: &[String], hello: &Hello) -> Result<u8, String> {
        let node = hello.node;
        let entry = self.allow.iter().find(|peer| peer.node == node);
        if entry.is_none() && !self.allow.is_empty() {
            return Err(format!(
                "node {node} is not among those that are allowed; add it to [[allow]] there"
            ));
        }
        let given = entry.and_then(|peer| peer.name.clone());
        let wanted = given.unwrap_or_else(|| name_of(node, &self.cluster));
        if !names.iter().any(|name| name.eq_ignore_ascii_case(&wanted)) {
            return Err(format!(
                "who says that it is node {node} has a certificate for {}, not for {wanted}; give it that certificate, or \
                 write the name that it has into [[allow]] of the other relay",
                names.join(", ")
            ));
        }
        if let Some(endpoint) = entry.and_then(|peer| peer.endpoint.as_ref())
            && endpoint.to_string() != hello.endpoint
        {
            return Err(format!(
                "node {node} says that it is {}, and is allowed as {endpoint} only",
                hello.endpoint
            ));
        }
        Ok(match self.security_of(node) {
            Security::Encrypt => TRANSPORT_TLS,
            _ => TRANSPORT_TCP,
        })
    }

    /// Whether a node may be the relay at `endpoint`, as far as `allow` ties nodes to endpoints.
    pub fn place(&self, node: u32, endpoint: &str) -> Result<(), String> {
        for peer in &self.allow {
            let Some(tied) = peer.endpoint.as_ref().map(RelayEndpoint::to_string) else {
                continue;
            };
            if peer.node == node && tied != endpoint {
                return Err(format!(
                    "node {node} is met as {endpoint}, and is allowed as {tied} only"
                ));
            }
            if peer.node != node && tied == endpoint {
                return Err(format!(
                    "{endpoint} is node {}, says [[allow]] there, and this is node {node}",
                    peer.node
                ));
            }
        }
        Ok(())
    }

    /// Whether any node's data comes in clear.
    pub fn takes_clear(&self) -> bool {
        let mut all = self.allow.iter().map(|peer| peer.security);
        self.security == Security::Authenticate || all.any(|s| s == Security::Authenticate)
    }
}

/// The files of TLS as they were when last read, and who is believed by them.
#[derive(Debug)]
pub struct Tls(RwLock<InUse>);

#[derive(Debug)]
struct InUse {
    read: Read,
    trust: Arc<Trust>,
    last_reload: Option<Reload>,
}

/// Files of TLS that were read and found good.
#[derive(Debug)]
pub struct Read {
    files: PemFiles,
    seen: Seen,
    credentials: Arc<Credentials>,
}

impl Read {
    /// Reads the files, see [`Credentials::load`].
    pub fn new(files: PemFiles) -> Result<Read, String> {
        let seen = look_at(&files);
        let credentials = Arc::new(Credentials::load(&files)?);
        Ok(Read {
            files,
            seen,
            credentials,
        })
    }
}

/// What became of files that were exchanged while the relay runs.
#[derive(Clone, Debug)]
pub struct Reload {
    /// When that was seen.
    pub at: SystemTime,
    /// What is in use now; or why they are not used, and the old ones stay.
    pub result: Result<String, String>,
}

impl Reload {
    fn of(read: Result<&Arc<Credentials>, &String>) -> Reload {
        Reload {
            at: SystemTime::now(),
            result: read.map_err(String::clone).map(|new| {
                let names = new.names.join(", ");
                format!("{names}, until {}", date(new.until))
            }),
        }
    }
}

/// What a file looks like from outside: enough to see that it was exchanged.
type Seen = [Option<(SystemTime, u64, u64)>; 3];

fn look_at(files: &PemFiles) -> Seen {
    use std::os::unix::fs::MetadataExt;
    [&files.certificate, &files.private_key, &files.authority].map(|path| {
        let info = std::fs::metadata(path).ok()?;
        Some((info.modified().ok()?, info.len(), info.ino()))
    })
}

impl Tls {
    /// Reads the files.
    pub fn new(files: PemFiles, trust: Trust) -> Result<Tls, String> {
        Ok(Self::with(Read::new(files)?, trust))
    }

    /// With files that were read.
    pub fn with(read: Read, trust: Trust) -> Tls {
        Tls(RwLock::new(InUse {
            read,
            trust: Arc::new(trust),
            last_reload: None,
        }))
    }

    fn get<T>(&self, what: impl Fn(&InUse) -> T) -> T {
        what(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self) -> RwLockWriteGuard<'_, InUse> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that new connections use.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.get(|in_use| in_use.read.credentials.clone())
    }

    /// Who is believed by now.
    pub fn trust(&self) -> Arc<Trust> {
        self.get(|in_use| in_use.trust.clone())
    }

    /// Certificate, private key, authority: which of `read` are other files than those in use, or have another content.
    pub fn differs(&self, read: &Read) -> [bool; 3] {
        self.get(|in_use| {
            let paths = |files: &PemFiles| {
                [&files.certificate, &files.private_key, &files.authority].map(Clone::clone)
            };
            let (old, new) = (paths(&in_use.read.files), paths(&read.files));
            std::array::from_fn(|n| old[n] != new[n] || in_use.read.seen[n] != read.seen[n])
        })
    }

    /// From now on these hold for new connections, together.
    pub fn replace(&self, read: Read, trust: Trust) {
        let is_new = self.differs(&read).contains(&true);
        let mut in_use = self.change();
        if is_new {
            in_use.last_reload = Some(Reload::of(Ok(&read.credentials)));
        }
        (in_use.read, in_use.trust) = (read, Arc::new(trust));
    }

    /// Reads the files anew if they were changed. `None` if they were not; an error leaves everything as it was, and is told
    /// once for each change.
    pub fn reload(&self) -> Option<Result<Arc<Credentials>, String>> {
        let (files, old) = self.get(|in_use| (in_use.read.files.clone(), in_use.read.seen));
        let seen = look_at(&files);
        if old == seen {
            return None;
        }
        let read = Credentials::load(&files).map(Arc::new);
        let mut in_use = self.change();
        if in_use.read.files != files {
            return None; // others were given meanwhile
        }
        in_use.read.seen = seen;
        in_use.last_reload = Some(Reload::of(read.as_ref()));
        if let Ok(credentials) = &read {
            in_use.read.credentials = credentials.clone();
        }
        Some(read)
    }

    /// What became of the files that were exchanged last, if any were.
    pub fn last_reload(&self) -> Option<Reload> {
        self.get(|in_use| in_use.last_reload.clone())
    }

    /// What is to be told about the certificate, if anything.
    pub fn warning(&self) -> Option<String> {
        let (until, path) = self.get(|in_use| {
            let path = in_use.read.files.certificate.clone();
            (in_use.read.credentials.until, path)
        });
        let path = path.display();
        let mend = "make another one and put it in its place: tbusd cert node";
        match until.duration_since(SystemTime::now()) {
            Ok(left) if left > SOON => None,
            Ok(left) => Some(format!(
                "{path}: the certificate ends on {}, in {} days; {mend}",
                date(until),
                left.as_secs() / 86_400
            )),
            Err(_) => Some(format!(
                "{path}: the certificate ended on {}, and every new connection is refused; {mend}",
                date(until)
            )),
        }
    }
}

fn seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    }
}
