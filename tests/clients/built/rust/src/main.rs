//! Fetches a page through a proxy by three libraries: rustclients LIBRARY PROXY PAGE
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Outcome = Result<String, Box<dyn std::error::Error>>;

fn by_reqwest(proxy: &str, page: &str) -> Outcome {
    let client = reqwest::blocking::Client::builder()
        .proxy(reqwest::Proxy::all(proxy)?)
        .build()?;
    Ok(client.get(page).send()?.text()?)
}

fn by_ureq(proxy: &str, page: &str) -> Outcome {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .proxy(Some(ureq::Proxy::new(proxy)?))
        .build()
        .into();
    Ok(agent.get(page).call()?.body_mut().read_to_string()?)
}

async fn by_tokio_socks(proxy: &str, page: &str) -> Outcome {
    let at = proxy.rsplit(['@', '/']).next().unwrap();
    let target = page.split('/').nth(2).unwrap();
    let mut stream = match proxy.split("//").nth(1).unwrap().rsplit_once('@') {
        None => tokio_socks::tcp::Socks5Stream::connect(at, target).await?,
        Some((login, _)) => {
            let (name, password) = login.split_once(':').unwrap();
            tokio_socks::tcp::Socks5Stream::connect_with_password(at, target, name, password).await?
        }
    };
    stream.write_all(b"GET /found.txt HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let answer = match words[1].as_str() {
        "reqwest" => by_reqwest(&words[2], &words[3])?,
        "ureq" => by_ureq(&words[2], &words[3])?,
        _ => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(by_tokio_socks(&words[2], &words[3]))?,
    };
    print!("{answer}");
    Ok(())
}
