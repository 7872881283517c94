import type { apidocs as english } from "../en/apidocs";

export const apidocs: Record<keyof typeof english, string> = {
  "apidocs.intro": "程序可使用的全部地址。以 Bearer 令牌发送 API 密钥；./canopy key create 可生成密钥。",
  "apidocs.filter": "筛选地址",
  "apidocs.nothing": "没有匹配的地址。",
  "apidocs.required": "必填",
  "apidocs.key": "需要 API 密钥。",
  "apidocs.staff": "仅限操作员。",
  "apidocs.administrator": "仅限管理员。",
  "apidocs.member": "需要 API 密钥或登录。",
  "apidocs.anyone": "无需登录。",
  "apidocs.parameters": "参数",
  "apidocs.body": "请求体（JSON）",
  "apidocs.answer": "响应 {status}",
  "apidocs.errors": "错误：{statuses}",
  "apidocs.command": "{path} 的命令",
};
