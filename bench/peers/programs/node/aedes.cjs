// An MQTT broker with everything at its defaults.
"use strict";
const net = require("node:net");
const { Aedes } = require("aedes");

Aedes.createBroker().then((broker) => {
  net.createServer({ noDelay: true }, broker.handle).listen({
    host: "127.0.0.1", port: Number(process.argv[2]), backlog: 65535,
  });
});
