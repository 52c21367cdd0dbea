// What a Node program does by the `socks` package, one command each; the test plays the others.
// node clients.js connect|bind|associate DOOR_PORT USER PASSWORD HOST PORT
"use strict";
const dgram = require("dgram");
const { SocksClient } = require("socks");

const [command, door, userId, password, host, port] = process.argv.slice(2);
const options = {
  proxy: { host: "127.0.0.1", port: Number(door), type: 5, ...(userId && { userId, password }) },
  command,
  destination: { host, port: Number(port) },
  timeout: 30000,
};

function tell(what) {
  process.stdout.write(what + "\n");
}

async function connect() {
  const { socket } = await SocksClient.createConnection(options);
  socket.setEncoding("utf8");
  let heard = "";
  socket.on("data", (data) => (heard += data));
  socket.on("end", () => tell(heard));
  socket.end("hello"); // its side only
}

function bind() {
  const client = new SocksClient(options);
  client.on("error", fail);
  client.on("bound", ({ remoteHost }) => tell(`${remoteHost.host} ${remoteHost.port}`));
  client.on("established", ({ socket, remoteHost }) => {
    tell(`${remoteHost.host} ${remoteHost.port}`);
    socket.pipe(socket);
    socket.resume(); // the package has paused it
  });
  client.connect();
}

function associate() {
  const client = new SocksClient({ ...options, destination: { host: "0.0.0.0", port: 0 } });
  client.on("error", fail);
  client.on("established", ({ socket, remoteHost: relay }) => {
    const udp = dgram.createSocket("udp4");
    udp.on("message", (packet) => {
      const { remoteHost, data } = SocksClient.parseUDPFrame(packet);
      tell(`${remoteHost.host} ${remoteHost.port} ${data}`);
      udp.close();
      socket.end();
    });
    const remoteHost = { host, port: Number(port) };
    const frame = SocksClient.createUDPFrame({ remoteHost, data: Buffer.from("hello") });
    udp.send(frame, relay.port, relay.host);
  });
  client.connect();
}

function fail(error) {
  process.stderr.write(error.message + "\n");
  process.exit(1);
}

Promise.resolve({ connect, bind, associate }[command]()).catch(fail);
