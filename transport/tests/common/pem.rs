//! Certificates for tests.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tbus::config::PemFiles;

/// An authority of the cluster "test", and where its files are.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    pub fn new(directory: &Path) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = authority.self_signed(&key).unwrap();
        let this = Authority {
            issuer: Issuer::new(authority, key),
            directory: directory.to_path_buf(),
        };
        this.write("authority", "CERTIFICATE", root.der());
        this
    }

    /// Makes a certificate for a node.
    pub fn files(&self, node: u32) -> PemFiles {
        let key = KeyPair::generate().unwrap();
        let names = vec![format!("node-{node}.test.tbus")];
        let own = CertificateParams::new(names).unwrap();
        let own = own.signed_by(&key, &self.issuer).unwrap();
        let private_key = self.write(&format!("key-{node}"), "PRIVATE KEY", key.serialized_der());
        std::fs::set_permissions(&private_key, Permissions::from_mode(0o600)).unwrap();
        PemFiles {
            certificate: self.write(&format!("certificate-{node}"), "CERTIFICATE", own.der()),
            private_key,
            authority: self.directory.join("authority"),
        }
    }

    fn write(&self, name: &str, label: &str, der: &[u8]) -> PathBuf {
        let text = STANDARD.encode(der);
        let path = self.directory.join(name);
        let pem = format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        std::fs::write(&path, pem).unwrap();
        path
    }
}
