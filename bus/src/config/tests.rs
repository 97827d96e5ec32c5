use super::*;

const CHANNELS: &str = "<TbusGCIM>
  <AddrTemplet>8.8.8.8</AddrTemplet>
  <GCIMShmKey>1000</GCIMShmKey>
  <Channels>
    <Priority>8</Priority>
    <Address>0.0.1.1</Address>
    <Address>0.0.3.1</Address>
    <SendSize>20480000</SendSize>
    <RecvSize>40960</RecvSize>
    <Desc>any text</Desc>
  </Channels>
  <!-- more <Channels> -->
</TbusGCIM>
";

const ROUTES: &str = "<RelayMnger>
  <AddrTemplet>8.8.8.8</AddrTemplet>
  <RelayShmKey>2688</RelayShmKey>
  <Relays>
    <Addr>0.0.3.1</Addr>
    <MConn>tcp://10.1.44.61:1027</MConn>
    <Desc>any text</Desc>
  </Relays>
</RelayMnger>
";

const ROOM: u64 = 1 << 30;

fn channels(text: &str) -> Result<ChannelsConfig, Vec<Problem>> {
    parse_channels(text.as_bytes(), false, ROOM)
}

/// The only problem of a text.
fn problem(result: Result<impl fmt::Debug, Vec<Problem>>) -> (u32, u32, String) {
    let problems = result.expect_err("refused");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(!problems[0].mend.is_empty());
    (
        problems[0].row,
        problems[0].column,
        problems[0].reason.clone(),
    )
}

#[test]
fn reads_the_old_files() {
    let read = channels(CHANNELS).unwrap();
    assert_eq!((read.template, read.key), (Template::default(), 1000));
    let [channel] = &read.channels[..] else {
        panic!("{read:?}")
    };
    assert_eq!(channel.addresses, [Address(0x101), Address(0x301)]);
    assert_eq!(
        (channel.send_size, channel.recv_size, channel.priority),
        (20480000, 40960, 8)
    );
    assert_eq!(
        (channel.description.as_str(), channel.at),
        ("any text", (4, 3))
    );
    let read = parse_routes(ROUTES.as_bytes(), false).unwrap();
    let [route] = &read.routes[..] else {
        panic!("{read:?}")
    };
    assert_eq!((read.key, route.address), (2688, Address(0x301)));
    assert_eq!(route.endpoints[0].to_string(), "tcp://10.1.44.61:1027");
    assert_eq!(route.transports, [Transport::Verbs, Transport::Tcp]);
}

#[test]
fn reads_gbk_by_its_declaration_or_says_how() {
    let text = CHANNELS.replace("any text", "通道");
    let declared =
        format!("<?xml version=\"1.0\" encoding=\"GBK\" standalone=\"yes\" ?>\r\n{text}");
    let (bytes, _, failed) = encoding_rs::GBK.encode(&declared);
    assert!(!failed);
    assert_eq!(
        parse_channels(&bytes, false, ROOM).unwrap().channels[0].description,
        "通道"
    );
    let (bytes, _, _) = encoding_rs::GBK.encode(&text);
    let (row, column, reason) = problem(parse_channels(&bytes, false, ROOM));
    // The first character happens to be one in UTF-8 as well.
    assert_eq!(
        (row, column, reason.as_str()),
        (10, 12, "the text is not UTF-8")
    );
    let (_, _, reason) = problem(channels(
        "<?xml version='1.0' encoding='KLINGON'?><TbusGCIM/>",
    ));
    assert_eq!(reason, "the encoding 'KLINGON' is not known");
    // A byte order mark wins, and is no part of the text.
    assert!(channels(&format!("\u{feff}{CHANNELS}")).is_ok());
}

#[test]
fn reads_toml() {
    let text = r#"
addr_templet = "6.8.8.10"
gcim_shm_key = 0x3E8

[[channels]]
address = ["0.0.1.1", "0.0.3.1000"]
send_size = 20480000
recv_size = 65536
desc = "any text"
retention = "consumed"
mode = "640"
owner = "game"
group = "game"
memory = "shm"
"#;
    let read = parse_channels(text.as_bytes(), true, ROOM).unwrap();
    assert_eq!(
        (read.key, read.template.to_string()),
        (1000, "6.8.8.10".to_string())
    );
    let channel = &read.channels[0];
    assert_eq!(
        (channel.retention, channel.mode, channel.priority),
        (Retention::Consumed, Some(0o640), 8)
    );
    assert_eq!(
        (channel.owner.as_deref(), channel.group.as_deref()),
        (Some("game"), Some("game"))
    );
    let bad = text.replace("recv_size = 65536", "recv_sice = 65536");
    let problems = parse_channels(bad.as_bytes(), true, ROOM).unwrap_err();
    assert_eq!((problems[1].row, problems[1].column), (8, 1));
    assert_eq!(problems[1].reason, "recv_sice is not known in Channels");
    let routes = "relay_shm_key = 2688\n[[relays]]\naddr = '0.0.3.1'\nm_conn = ['tcp://a:1', 'tcp://[fe80::1]:2']\ntransports = 'ucx tcp'\n";
    let read = parse_routes(routes.as_bytes(), true).unwrap();
    assert_eq!(read.routes[0].endpoints[1].to_string(), "tcp://[fe80::1]:2");
    assert_eq!(read.routes[0].transports, [Transport::Ucx, Transport::Tcp]);
    assert_eq!(problem(parse_routes(b"relays = [\n", true)).0, 1);
}

/// Each refusal stands where the mistake is, and says it.
#[test]
fn refuses_with_row_column_and_reason() {
    let cases = [
        (
            "<Channels>\n",
            "<Chanels>\n",
            "expected 'Chanels' tag, not 'Channels'",
        ),
        (
            "0.0.3.1",
            "0.0.3.256",
            "number 4 of '0.0.3.256' is above 255",
        ),
        ("0.0.3.1", "0.0.1.1", "0.0.1.1 is paired with itself"),
        ("0.0.3.1", "0.0.0.0", "0.0.0.0 is a wildcard"),
        (
            "0.0.3.1",
            "255.255.255.255",
            "255.255.255.255 is a wildcard",
        ),
        (
            "<Address>0.0.3.1</Address>",
            "",
            "a channel has two addresses, this one has 1",
        ),
        ("20480000", "0", "SendSize is 0"),
        ("20480000", "-1", "'-1' is no value for SendSize"),
        ("20480000", "20M", "'20M' is no value for SendSize"),
        (
            "20480000",
            "99999999999999999999999",
            "is no value for SendSize",
        ),
        ("20480000", "5000000000", "SendSize is 5000000000 bytes"),
        ("20480000", "2000000000", "the file system has 1073741824"),
        (
            "<SendSize>20480000</SendSize>",
            "",
            "Channels has no SendSize",
        ),
        ("8.8.8.8", "8.8.8.9", "template '8.8.8.9' is not usable"),
        ("1000", "0x1FFFFFFFF", "'0x1FFFFFFFF' is no key"),
        (
            "<GCIMShmKey>1000</GCIMShmKey>",
            "",
            "TbusGCIM has no GCIMShmKey",
        ),
        (
            "<Desc>",
            "<Desk>x</Desk><Desc>",
            "Desk is not known in Channels",
        ),
        (
            "<Desc>",
            "<Priority>9</Priority><Desc>",
            "Priority stands in row 5 already",
        ),
        (
            "<Desc>",
            "<Memory>gold</Memory><Desc>",
            "'gold' is no value for Memory",
        ),
        (
            "<Desc>",
            "<Memory>hugetlb</Memory><Desc>",
            "Memory hugetlb is not there yet",
        ),
        (
            "<Desc>",
            "<Memory>memfd</Memory><Desc>",
            "Memory memfd is not there yet",
        ),
        (
            "<Desc>",
            "<Mode>666</Mode><Desc>",
            "Mode 666 lets everybody in",
        ),
        (
            "<Desc>",
            "<Mode>440</Mode><Desc>",
            "Mode 440 is not for reading and writing",
        ),
        (
            "<Desc>",
            "<Mode>0770</Mode><Desc>",
            "Mode 770 is not for reading and writing",
        ),
        (
            "<Desc>",
            "<Mode>888</Mode><Desc>",
            "'888' is no value for Mode",
        ),
        (
            "<Desc>",
            "<Retention>never</Retention><Desc>",
            "'never' is no value for Retention",
        ),
        (
            "<TbusGCIM>",
            "<!DOCTYPE x><TbusGCIM>",
            "a DTD is not allowed",
        ),
        ("</TbusGCIM>", "", "this is not well-formed XML"),
        (
            "  <!-- more <Channels> -->",
            "stray",
            "there is text between the elements",
        ),
    ];
    for (from, to, expected) in cases {
        let text = CHANNELS.replace(from, to);
        assert_ne!(text, CHANNELS);
        let (row, column, reason) = problem(channels(&text));
        assert!(reason.contains(expected), "{to}: {reason}");
        assert!(row >= 1 && column >= 1 && row <= 14, "{to}: {row}:{column}");
    }
    let twice = CHANNELS.replace(
        "</TbusGCIM>",
        &format!(
            "{}</TbusGCIM>",
            CHANNELS
                .split_once("</GCIMShmKey>")
                .unwrap()
                .1
                .replace("</TbusGCIM>\n", "")
                .replace("0.0.1.1", "0.0.3.1 ")
                .replacen("0.0.3.1<", "0.0.1.1<", 1)
        ),
    );
    let (row, _, reason) = problem(channels(&twice));
    assert!(
        reason.contains("stands in row 4 already") && row > 12,
        "{row}: {reason}"
    );
    assert!(
        problem(channels("<RelayMnger/>"))
            .2
            .contains("the root element is RelayMnger")
    );
    assert!(problem(channels("")).2.contains("not well-formed"));
    for (from, to, expected) in [
        ("tcp://", "udp://", "is no endpoint"),
        (":1027", "", "is no endpoint"),
        ("1027", "0", "is no endpoint"),
        ("1027", "70000", "is no endpoint"),
        (
            "<Desc>",
            "<Transports>verbs pigeon</Transports><Desc>",
            "'pigeon' is no transport",
        ),
        (
            "<Desc>",
            "<Transports>tcp tcp</Transports><Desc>",
            "'tcp' stands twice",
        ),
        (
            "<MConn>tcp://10.1.44.61:1027</MConn>",
            "",
            "Relays has no MConn",
        ),
    ] {
        let text = ROUTES.replace(from, to);
        let (_, _, reason) = problem(parse_routes(text.as_bytes(), false));
        assert!(reason.contains(expected), "{to}: {reason}");
    }
}

/// All problems of a file are told at once, in its order.
#[test]
fn tells_every_problem() {
    let text = CHANNELS
        .replace("0.0.1.1", "x")
        .replace("40960", "0")
        .replace("1000", "many");
    let error = ConfigError {
        file: "a.xml".into(),
        problems: channels(&text).unwrap_err(),
    };
    let lines: Vec<_> = error
        .to_string()
        .lines()
        .map(|l| l.split_once(": ").unwrap().0.to_string())
        .collect();
    assert_eq!(lines, ["a.xml:3:3", "a.xml:6:5", "a.xml:9:5"]);
}

/// Positions are right in a file of one long line, and finding them takes no time that grows with the square of it.
#[test]
fn reads_one_long_line() {
    let channel = |n: u32| {
        format!(
            "<Channels><Desc>通道</Desc><Address>0.1.{}.{}</Address><Address>0.0.0.1</Address><SendSize>4096</SendSize>\
             <RecvSize>4096</RecvSize></Channels>",
            n >> 8,
            n & 255
        )
    };
    let text = |count: u32, last: &str| {
        let channels: String = (0..count).map(channel).collect();
        format!("<TbusGCIM><GCIMShmKey>1</GCIMShmKey>{channels}{last}</TbusGCIM>")
    };
    let begun = std::time::Instant::now();
    assert_eq!(
        channels(&text(30_000, "")).unwrap().channels.len(),
        30_000,
        "two minutes when each position was counted from the beginning"
    );
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    let (row, column, _) = problem(channels(&text(1, "<Chanels/>")));
    let before = text(1, "").chars().count() - "</TbusGCIM>".len();
    assert_eq!((row, column), (1, before as u32 + 1));
}
