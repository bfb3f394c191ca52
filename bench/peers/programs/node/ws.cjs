// Rooms and users over WebSockets, as one writes it with `ws` in an hour. Speaks bench.peers.node.WebSocket.
"use strict";
const { WebSocketServer, WebSocket } = require("ws");

const rooms = new Map();
const users = new Map();
const server = new WebSocketServer({
  host: "127.0.0.1", port: Number(process.argv[2]), backlog: 65535, perMessageDeflate: false,
});

server.on("connection", (socket, request) => {
  const query = new URL(request.url, "http://bench").searchParams;
  const room = query.get("room");
  const user = query.get("user");
  if (room) {
    if (!rooms.has(room)) rooms.set(room, new Set());
    rooms.get(room).add(socket);
  }
  if (user) users.set(user, socket);
  socket.on("message", (data) => {
    const text = data.toString();
    if (text[0] === "R") {
      for (const member of rooms.get("bench") ?? []) {
        if (member.readyState === WebSocket.OPEN) member.send(text.slice(2));
      }
    } else {
      const end = text.indexOf(" ", 2);
      users.get(text.slice(2, end))?.send(text.slice(end + 1));
    }
  });
  socket.on("close", () => {
    rooms.get(room)?.delete(socket);
    if (users.get(user) === socket) users.delete(user);
  });
  socket.on("error", () => {}); // a reset is followed by "close"
});
