import type { common as english } from "../en/common";

export const common: Record<keyof typeof english, string> = {
  "common.retry": "重试",
  "common.cancel": "取消",
  "common.close": "关闭",
  "common.slots": "{count} 个空位",
  "common.slots#other": "{count} 个空位",
  "common.copied": "已复制",
  "common.notCopied": "浏览器不允许复制。",
  "common.unreachable": "无法连接 Canopy。请确认它正在运行，然后重试。",
  "common.wrong": "出错了。",
};
