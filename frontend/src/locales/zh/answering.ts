import type { answering as english } from "../en/answering";

export const answering: Record<keyof typeof english, string> = {
  "compare.which": "显示哪个回答",
  "compare.stop": "停止",
  "compare.keep": "保留这个",
  "compare.keepOf": "保留这个：{model}",
  "compare.with": "与…比较",
  "compare.onlyOne": "现在只有一个模型在服务，没有可比较的模型。",
  "compare.comparing": "与 {model} 比较",
  "compare.end": "停止比较",
  "preset.title": "预设",
  "preset.more": "在设置中添加或删除预设",
  "preset.none": "还没有预设：请在设置中添加",
  "preset.applied": "预设：{name}",
  "preset.end": "不使用预设回答",
};
