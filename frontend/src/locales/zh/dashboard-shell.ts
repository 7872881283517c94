import type { shell as english } from "../en/dashboard-shell";

export const shell: Record<keyof typeof english, string> = {
  "shell.title": "控制台",
  "shell.sections": "控制台的各部分",
  "shell.tree": "节点树",
  "shell.unknown": "此地址没有内容",
  "shell.unknownText": "控制台没有这个部分。",
  "shell.toTree": "前往节点树",
  "shell.admin": "Django 管理后台",
  "shell.apiDocs": "API 文档",
  "shell.elsewhere": "其他页面",
};
