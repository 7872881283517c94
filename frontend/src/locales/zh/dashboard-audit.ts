import type { audit as english } from "../en/dashboard-audit";

export const audit: Record<keyof typeof english, string> = {
  "audit.section": "审计日志",
  "audit.text": "对象或详情",
  "audit.when": "时间",
  "audit.who": "操作者",
  "audit.action": "操作",
  "audit.target": "对象",
  "audit.detail": "详情",
  "audit.result": "结果",
  "audit.allActions": "所有操作",
  "audit.refresh": "刷新",
  "audit.none": "没有符合条件的记录。",
  "audit.loading": "正在读取日志…",
  "audit.more": "更早的记录",
  "audit.began": "已开始；结果未知",
};
