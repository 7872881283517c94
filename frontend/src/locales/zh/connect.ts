import type { connect as english } from "../en/connect";

export const connect: Record<keyof typeof english, string> = {
  "connect.title": "连接服务器",
  "connect.address": "Canopy 服务器地址",
  "connect.open": "打开",
  "connect.noAddress": "这不是有效的地址。请试试 192.168.1.20:8000 或 chat.example.org。",
  "connect.asking": "正在询问服务器…",
  "connect.answers": "Canopy 在此应答，用时 {ms} 毫秒。",
  "connect.other": "此处有应答，但不是 Canopy。",
  "connect.silent": "此处没有应答。请检查地址，并确认服务器正在运行且可从此网络访问。",
  "connect.blocked": "浏览器不允许安全页面询问非 https 地址。请直接打开查看。",
  "connect.known": "以前用过的服务器",
  "connect.forget": "忘记 {server}",
};
