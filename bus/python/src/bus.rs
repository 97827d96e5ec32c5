//! `tbus.Bus` and `tbus.Endpoint`.

use crate::errors::{self, AddressError};
use crate::held::{Held, Source};
use crate::receiver::Receiver;
use crate::sender::Sender;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyString};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use tbus::{Address, Template};

/// A host's channels, found by the key of its map: a number, or its text, decimal or hexadecimal with 0x.
#[pyclass(frozen, module = "tbus", weakref)]
pub struct Bus {
    inner: Owned<tbus::Bus>,
    template: Template,
}

/// One address of a bus, and the channels that it is an end of. Made by `Bus.bind`.
#[pyclass(frozen, module = "tbus", weakref)]
pub struct Endpoint {
    inner: Owned<tbus::Endpoint>,
    address: String,
    template: Template,
}

/// Something until it is closed, in the process that made it.
struct Owned<T> {
    inner: Mutex<Option<T>>,
    forks: u32,
}

impl<T> Owned<T> {
    fn new(inner: T) -> Owned<T> {
        Owned {
            inner: Mutex::new(Some(inner)),
            forks: tbus::forks(),
        }
    }

    /// Calls `act`, which must run no Python code.
    fn with<R>(&self, act: impl FnOnce(&mut T) -> tbus::Result<R>) -> PyResult<R> {
        if self.forks != tbus::forks() {
            return Err(errors::forked());
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = inner.as_mut().ok_or_else(errors::closed)?;
        act(inner).map_err(|error| errors::of_bus(&error))
    }

    fn close(&self) -> PyResult<()> {
        if self.forks != tbus::forks() {
            return Err(errors::forked());
        }
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}

fn key_of(key: &Bound<'_, PyAny>) -> PyResult<u32> {
    let read = match (key.cast::<PyInt>(), key.cast::<PyString>()) {
        (Ok(number), _) => number.extract::<u32>().ok(),
        (_, Ok(text)) => tbus::parse_key(&text.to_cow()?),
        _ => return Err(PyTypeError::new_err("key: give a number or a text")),
    };
    read.ok_or_else(|| {
        AddressError::new_err(format!(
            "key: {key} is no key of a bus; give a number from 0 to 4294967295, decimal or hexadecimal with 0x"
        ))
    })
}

fn address_of(template: Template, address: &Bound<'_, PyAny>) -> PyResult<Address> {
    if let Ok(text) = address.cast::<PyString>() {
        let read = template.parse(&text.to_cow()?);
        return read.map_err(|error| errors::of_address(&error));
    }
    let number = address.cast::<PyInt>().map_err(|_| {
        PyTypeError::new_err("address: give a text such as \"0.0.3.1\", or a number")
    })?;
    number
        .extract::<u32>()
        .map(Address)
        .map_err(|_| AddressError::new_err(format!("address: {number} does not fit 32 bits")))
}

#[pymethods]
impl Bus {
    #[new]
    fn new(key: &Bound<'_, PyAny>) -> PyResult<Bus> {
        let inner = tbus::Bus::attach(key_of(key)?);
        Self::attached(inner)
    }

    /// The bus in a directory, instead of the one that a key stands for.
    #[staticmethod]
    fn at(path: PathBuf) -> PyResult<Bus> {
        Self::attached(tbus::Bus::attach_at(path))
    }

    /// The endpoint with this address: a text, or a number of 32 bits. NotFound if no channel has it.
    fn bind(&self, address: &Bound<'_, PyAny>) -> PyResult<Endpoint> {
        let address = address_of(self.template, address)?;
        Ok(Endpoint {
            inner: Owned::new(self.inner.with(|bus| bus.bind(address))?),
            address: self.template.show(address).to_string(),
            template: self.template,
        })
    }

    /// How many bits each of an address's four numbers has, as a text.
    #[getter]
    fn template(&self) -> String {
        self.template.to_string()
    }

    /// Lets go of the map. Senders and receivers go on. Closing twice is no error.
    fn close(&self) -> PyResult<()> {
        self.inner.close()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close()
    }
}

impl Bus {
    fn attached(inner: tbus::Result<tbus::Bus>) -> PyResult<Bus> {
        let inner = inner.map_err(|error| errors::of_bus(&error))?;
        Ok(Bus {
            template: inner.template(),
            inner: Owned::new(inner),
        })
    }
}

#[pymethods]
impl Endpoint {
    /// Its address.
    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    /// The addresses at the other ends of its channels, as the map has them now.
    #[getter]
    fn peers(&self) -> PyResult<Vec<String>> {
        self.inner.with(|endpoint| {
            endpoint.refresh()?;
            let shown = |peer| self.template.show(peer).to_string();
            Ok(endpoint.peers().map(shown).collect())
        })
    }

    /// Takes the sending end of the channel to `peer`. Busy if somebody has it.
    fn sender(&self, py: Python<'_>, peer: &Bound<'_, PyAny>) -> PyResult<Sender> {
        let peer = address_of(self.template, peer)?;
        // It may wait a tenth of a second for a relay.
        py.detach(|| {
            self.inner.with(|endpoint| {
                endpoint.refresh()?;
                endpoint.sender(peer).map(Sender::new)
            })
        })
    }

    /// Takes the receiving end of the channel from `peer`; without one, of all its channels, those included that are created
    /// later, in turns. Busy if somebody has it.
    #[pyo3(signature = (peer=None))]
    fn receiver(&self, py: Python<'_>, peer: Option<&Bound<'_, PyAny>>) -> PyResult<Receiver> {
        let peer = peer
            .map(|peer| address_of(self.template, peer))
            .transpose()?;
        let source = py.detach(|| {
            self.inner.with(|endpoint| {
                endpoint.refresh()?;
                match peer {
                    Some(peer) => Ok(Source::One(endpoint.receiver(peer)?, peer)),
                    None => Ok(Source::All(endpoint.clone().incoming()?)),
                }
                .map(|source| (source, endpoint.bus().clone()))
            })
        });
        let (source, bus) = source?;
        Ok(Receiver::new(Held::new(source, bus), self.template))
    }

    /// Lets go of it. Senders and receivers go on. Closing twice is no error.
    fn close(&self) -> PyResult<()> {
        self.inner.close()
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close()
    }

    fn __repr__(&self) -> String {
        format!("<tbus.Endpoint {}>", self.address)
    }
}
