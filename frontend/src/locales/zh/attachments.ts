import type { attachments as english } from "../en/attachments";

export const attachments: Record<keyof typeof english, string> = {
  "attach.list": "附件",
  "attach.open": "查看 {name}",
  "attach.remove": "移除 {name}",
  "attach.copy": "复制文本",
  "attach.insert": "放入消息",
  "attach.pasted": "粘贴的文本",
  "attach.image": "{name} 是图片；只能附加文本。",
  "attach.binary": "{name} 不是文本；只能附加文本。",
  "attach.encoding": "{name} 无法作为文本读取。请另存为 UTF-8 后再附加。",
  "attach.empty": "{name} 是空的。",
  "attach.unreadable": "{name} 无法读取。",
  "attach.tooLarge": "{name} 太长：一条消息最多 {most} 个字符。",
  "attach.tooLong": "{name} 太长：{count} 个字符，最多 {most} 个。",
  "attach.tooLongTogether": "加上 {name} 后消息太长：{count} 个字符，最多 {most} 个。",
  "attach.tooMany": "一条消息最多附加 {most} 个文件。",
  "attach.notKept": "此浏览器没有空间保存这些文件：请在刷新或离开页面之前发送消息。",
};
